/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* pending.bpf.h: what connections asked for, until the agent has accepted them. The loader gives the map of redirect.bpf.c, which
 * makes the entries (handover.bpf.h), to verdict.bpf.c, which adds where the client's socket is.
 */
#ifndef SLUICE_PENDING_BPF_H
#define SLUICE_PENDING_BPF_H

#include "common.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_PENDING);
	__type(key, struct sluice_tuple);
	__type(value, struct sluice_origin);
} pending SEC(".maps");

#endif
