/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* natives.bpf.h: what is remembered of sockets that go their own way. */
#ifndef SLUICE_NATIVES_BPF_H
#define SLUICE_NATIVES_BPF_H

#include "common.bpf.h"

/* Who called connect(), kept with the socket where that is not whose the socket's cgroup is. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} natives SEC(".maps");

/* Ports at which a socket that is bound to a device has ever listened: the connect hook does not find those. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_PORTS);
	__type(key, __be16);
	__type(value, __u8);
} device_ports SEC(".maps");

static __always_inline void note_device_port(__be16 port)
{
	__u8 yes = 1;

	bpf_map_update_elem(&device_ports, &port, &yes, BPF_ANY);
}

#endif
