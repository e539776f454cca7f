/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* outcome.bpf.h: what became of connects, counted. */
#ifndef SLUICE_OUTCOME_BPF_H
#define SLUICE_OUTCOME_BPF_H

#include "common.bpf.h"

#define ALLOW 1
#define DENY 0

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLUICE_EV_MAX);
	__type(key, __u32);
	__type(value, __u64);
} events SEC(".maps");

static __always_inline void count(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&events, &event);

	if (n)
		(*n)++;
}

#endif
