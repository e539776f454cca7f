/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* common.bpf.h: what both objects of programs have. The loader gives the maps of redirect.bpf.c to verdict.bpf.c. */
#ifndef SLUICE_COMMON_BPF_H
#define SLUICE_COMMON_BPF_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include "sluice.h"

#define AF_INET 2

/* Fixed by the loader before the programs are loaded, the same for both. A section of its own, so that the loader need not
 * search for it among other constants.
 */
const volatile struct sluice_config config SEC(".rodata.config");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sluice_origin);
} origins SEC(".maps");

static __always_inline void map_v4(__u8 *addr, __be32 ip)
{
	__builtin_memset(addr, 0, 10);
	addr[10] = addr[11] = 0xff;
	__builtin_memcpy(addr + 12, &ip, 4);
}

/* Both ends of a connection, as the socket at hand sees them; IPv4 as IPv4-mapped.
 * volatile: the verifier allows context fields one at a time, and clang would merge neighbours into one load.
 */
static __always_inline void addresses_of(const volatile struct bpf_sock_ops *ctx, bool v4, __u8 *local, __u8 *remote)
{
	if (v4) {
		map_v4(local, ctx->local_ip4);
		map_v4(remote, ctx->remote_ip4);
	} else {
		__u32 here[4] = {ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]};
		__u32 there[4] = {ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]};

		__builtin_memcpy(local, here, 16);
		__builtin_memcpy(remote, there, 16);
	}
}

#endif
