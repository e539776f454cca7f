/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* arrive.bpf.h: a SYN is judged where it arrives.
 *
 * connect() is judged by who listens just then. Somebody else may by the time the SYN is there: the server came up meanwhile,
 * the SYN left late (TCP_FASTOPEN_CONNECT), or the kernel has chosen another socket than the hook did (SO_REUSEPORT, a socket
 * that is bound to a device). So the socket that really receives the SYN is looked at once more.
 *
 * Its sender is found by its addresses, turned round: a socket of the same network namespace that is connecting. What the connect
 * hook knows of it is kept with that socket, so there is nothing that could be forged, filled or left over. A SYN of another
 * host or namespace has no sender here and passes; a SYN that came over loopback without one is not let through to a server
 * with rules of its own.
 */
#ifndef SLUICE_ARRIVE_BPF_H
#define SLUICE_ARRIVE_BPF_H

#include "identity.bpf.h"
#include "natives.bpf.h"
#include "outcome.bpf.h"

#define LOOPBACK_IFINDEX 1
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_DSTOPTS 60
#define MAX_EXTENSIONS 4	/* headers between those of IPv6 and TCP: each kind once, destination options twice */
#define TCP_FLAGS_OFFSET 13
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_FLAG_ACK 0x10

/* Where the TCP header begins; 0 if it cannot be found. */
static __always_inline __u32 tcp_offset(struct __sk_buff *skb, bool v4)
{
	__u32 offset = 40;
	__u8 next;

	if (v4)
		return bpf_skb_load_bytes(skb, 0, &next, 1) ? 0 : (next & 0xf) * 4;
	if (bpf_skb_load_bytes(skb, 6, &next, 1))
		return 0;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		__u8 header[2];

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			break;
		if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			return 0;
		next = header[0];
		offset += (header[1] + 1) * 8;
	}
	return next == IPPROTO_TCP ? offset : 0;
}

/* Read a SYN: where it goes, and by what its sender is found. False: this is no SYN. */
static __always_inline bool read_syn(struct __sk_buff *skb, struct destination *to, struct bpf_sock_tuple *sender)
{
	__u32 offset = tcp_offset(skb, to->v4);
	__be16 ports[2] = {};
	__be32 ip4[2];
	__u8 flags;

	if (offset) {
		if (bpf_skb_load_bytes(skb, offset + TCP_FLAGS_OFFSET, &flags, 1) ||
		    (flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST)) != TCP_FLAG_SYN)
			return false;
		bpf_skb_load_bytes(skb, offset, ports, sizeof(ports));
	}
	/* What hides behind other headers is taken for a SYN of which no sender is known. */
	to->port = ports[1];
	if (to->v4) {
		bpf_skb_load_bytes(skb, 12, ip4, sizeof(ip4));
		map_v4(to->addr, ip4[1]);
		sender->ipv4.saddr = ip4[1];
		sender->ipv4.daddr = ip4[0];
		sender->ipv4.sport = ports[1];
		sender->ipv4.dport = ports[0];
	} else {
		bpf_skb_load_bytes(skb, 8, sender->ipv6.daddr, 16);
		bpf_skb_load_bytes(skb, 24, sender->ipv6.saddr, 16);
		__builtin_memcpy(to->addr, sender->ipv6.saddr, 16);
		sender->ipv6.sport = ports[1];
		sender->ipv6.dport = ports[0];
	}
	return true;
}

/* Who is called, now that the listening socket is known; SLUICE_ANY: the generation is gone. */
static __always_inline __u32 called(const struct destination *to, __u32 listener, __u32 generation)
{
	struct sluice_address *class;

	if (listener != SLUICE_HOST)
		return listener;
	class = class_of(to, generation);
	if (!class)
		return SLUICE_ANY;
	/* Nobody's cgroup: then whoever owns the address. */
	return is_workload(class->identity) || !(class->flags & SLUICE_ADDRESS_LOCAL) ? class->identity : SLUICE_HOST;
}

/* Whether the rules of now let a subject go to a peer past the agent. */
static __always_inline bool may_pass(const struct sluice_control *now, __u32 generation, __u32 subject, __u32 peer,
				     const struct destination *to)
{
	struct sluice_rule *found = rule(generation, subject, peer, to);

	if (!found && *(volatile __u32 *)&now->generation != generation)
		return false;
	if (found && found->action == SLUICE_REDIRECT && found->flags & SLUICE_RULE_FAIL_OPEN)
		return !beats(now);
	return action_of(found, subject) == SLUICE_NATIVE;
}

static __always_inline int judge_syn(struct __sk_buff *skb, struct bpf_sock *listener)
{
	struct destination to = {.transport = IPPROTO_TCP, .v4 = skb->protocol == bpf_htons(ETH_P_IP)};
	struct bpf_sock_tuple tuple = {};
	struct sluice_origin *origin;
	struct sluice_control *now;
	__u32 zero = 0, generation, whom, *native;
	struct bpf_sock *sender;
	bool passes;
	__u64 sock;

	now = bpf_map_lookup_elem(&control, &zero);
	generation = now ? *(volatile __u32 *)&now->generation : 0;
	if (!generation)	/* before the first policy is in */
		return ALLOW;
	if (!read_syn(skb, &to, &tuple))
		return ALLOW;
	sender = bpf_sk_lookup_tcp(skb, &tuple, to.v4 ? sizeof(tuple.ipv4) : sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (sender && sender->state != BPF_TCP_SYN_SENT) {	/* a listener with the port that a client of another host has */
		bpf_sk_release(sender);
		sender = NULL;
	}
	if (!sender && skb->ifindex != LOOPBACK_IFINDEX)
		return ALLOW;

	/* The verifier knows what these point to and forbids to look further; as plain numbers they can be probed. */
	bpf_probe_read_kernel(&sock, sizeof(sock), &listener);
	whom = called(&to, sluice_owner(sock), generation);
	if (whom == SLUICE_ANY) {
		if (sender)
			bpf_sk_release(sender);
		count(SLUICE_EV_UNSETTLED);
		return DENY;
	}
	if (!sender) {
		if (may_pass(now, generation, SLUICE_UNRESOLVED, whom, &to))
			return ALLOW;
		count(SLUICE_EV_SYN_UNKNOWN);
		return DENY;
	}
	origin = bpf_sk_storage_get(&origins, sender, 0, 0);
	if (origin) {
		/* The agent reaches whom it was told; whoever was redirected reaches the agent. */
		passes = whom == (origin->subject == SLUICE_AGENT ? origin->peer : SLUICE_AGENT);
	} else {
		native = bpf_sk_storage_get(&natives, sender, 0, 0);
		bpf_probe_read_kernel(&sock, sizeof(sock), &sender);
		passes = may_pass(now, generation, native ? *native : sluice_owner(sock), whom, &to);
	}
	bpf_sk_release(sender);
	if (passes)
		return ALLOW;
	count(SLUICE_EV_SYN_REFUSED);
	return DENY;
}

#endif
