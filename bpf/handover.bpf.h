/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* handover.bpf.h: what a redirected connection asked for, from the client's socket to the one that the agent accepts.
 *
 * When the SYN leaves, an entry is written under the addresses and ports that the agent will see, and under the sequence
 * number that the connection begins with. Addresses repeat across network namespaces, and whoever rules one may choose them
 * as he likes; the sequence number is the kernel's choice. So an entry belongs to one connection, and nobody else's is
 * overwritten, taken or deleted. When the handshake is complete the entry moves to the accepted socket, before accept()
 * returns it.
 */
#ifndef SLUICE_HANDOVER_BPF_H
#define SLUICE_HANDOVER_BPF_H

#include "identity.bpf.h"
#include "outcome.bpf.h"
#include "pending.bpf.h"

struct inet_sock {
	struct sock sk;
} __attribute__((preserve_access_index));
struct inet_connection_sock {
	struct inet_sock icsk_inet;
} __attribute__((preserve_access_index));
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 write_seq;
} __attribute__((preserve_access_index));

/* What the connections that the agent accepts asked for. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sluice_origin);
} accepted SEC(".maps");

/* How many sockets of each subject have sent a SYN to the agent and have no answer yet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLUICE_UNRESOLVED);
	__type(key, __u32);
	__type(value, __u32);
} waiting SEC(".maps");

/* Whether a socket is in a network namespace that another user than root rules, by a user namespace (unshare -Urn, rootless
 * containers). There anybody can have any address, and what is written down for its sockets would say nothing of who they are.
 */
static __always_inline bool is_rootless(__u64 sock)
{
	struct sock *sk = (struct sock *)sock;

	return BPF_CORE_READ(sk, __sk_common.skc_net.net, user_ns, level) > 0;
}

/* Whether a subject has as many connections on their way as it may. */
static __always_inline bool is_crowded(__u32 subject)
{
	__u32 *n = bpf_map_lookup_elem(&waiting, &subject);

	return n && *n >= SLUICE_MAX_WAITING;
}

/* The key of a connection, from the client's end or from the agent's. */
static __always_inline void name(const volatile struct bpf_sock_ops *ctx, bool v4, bool client, __u32 sequence,
				 struct sluice_tuple *tuple)
{
	/* In the agent's eyes the client is in the agent's namespace, wherever the packet came from. */
	tuple->netns = config.agent_netns;
	addresses_of(ctx, v4, client ? tuple->client : tuple->agent, client ? tuple->agent : tuple->client);
	tuple->client_port = client ? bpf_htons(ctx->local_port) : bpf_htons(bpf_ntohl(ctx->remote_port));
	tuple->agent_port = config.agent_port;
	tuple->sequence = sequence;
}

/* A client's SYN is about to leave. */
static __always_inline void on_syn(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct sluice_origin *origin = bpf_sk_storage_get(&origins, sk, 0, 0);
	struct sluice_tuple tuple = {};
	struct tcp_sock *tcp;
	__u32 subject, *n;

	if (!origin || origin->subject == SLUICE_AGENT)
		return;
	subject = origin->subject;
	n = bpf_map_lookup_elem(&waiting, &subject);
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp || !n)
		return;
	origin->since_ns = bpf_ktime_get_ns();
	origin->sequence = tcp->write_seq + 1;	/* of the first byte after the SYN */
	name(ctx, origin->v4, true, origin->sequence, &tuple);
	/* The agent refuses a connection that it does not know. */
	if (is_crowded(subject)) {
		count(SLUICE_EV_CROWDED);
		return;
	}
	if (bpf_map_update_elem(&pending, &tuple, origin, BPF_NOEXIST)) {
		count(SLUICE_EV_NO_ROOM);
		return;
	}
	__sync_fetch_and_add(n, 1);
	origin->flags |= SLUICE_ORIGIN_WAITS;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* A client's socket has another state: its SYN is answered, or it is gone, maybe without ever having been accepted. */
static __always_inline void on_state(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct sluice_origin *origin = bpf_sk_storage_get(&origins, sk, 0, 0);
	struct sluice_tuple tuple = {};
	__u32 subject, *n;

	if (!origin || origin->subject == SLUICE_AGENT)
		return;
	if (origin->flags & SLUICE_ORIGIN_WAITS) {
		origin->flags &= ~SLUICE_ORIGIN_WAITS;
		subject = origin->subject;
		n = bpf_map_lookup_elem(&waiting, &subject);
		if (n)
			__sync_fetch_and_add(n, -1);
	}
	if (ctx->args[1] != BPF_TCP_CLOSE)
		return;
	name(ctx, origin->v4, true, origin->sequence, &tuple);
	bpf_map_delete_elem(&pending, &tuple);
}

/* A handshake is complete, maybe the agent's. */
static __always_inline void on_accept(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct sluice_tuple tuple = {};
	struct sluice_origin *origin;

	if (ctx->local_port != bpf_ntohs(config.agent_port) || bpf_get_netns_cookie(ctx) != config.agent_netns)
		return;
	name(ctx, ctx->family == AF_INET, false, ctx->rcv_nxt, &tuple);
	origin = bpf_map_lookup_elem(&pending, &tuple);
	if (!origin)	/* nobody redirected it: somebody found our port */
		return;
	bpf_sk_storage_get(&accepted, sk, origin, BPF_SK_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&pending, &tuple);
}

#endif
