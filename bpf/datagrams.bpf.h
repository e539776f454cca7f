/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* datagrams.bpf.h: a datagram is judged as it leaves.
 *
 * connect() may be long before send(), the kernel reads some addresses otherwise than they were given (zero, with a network
 * card chosen; what packet filters rewrite), and several sends may make one datagram. So each datagram is judged where it
 * leaves: by the addresses that are in it, for the subject that is kept with its socket, by the rules of now and by who
 * would hear it now.
 *
 * To a group (multicast, broadcast) there may be many hearers, a socket that is bound to a network card cannot be looked up
 * from here, and an address may be this host's without the agent knowing (AnyIP). Such datagrams are judged once more where
 * they are about to be put into the hearer's queue.
 *
 * An answer is no new conversation: a socket may be written to from where it has written to. That is kept with the asking
 * socket, and ends with it: whoever has its port next has not asked. Only of those who wrote from elsewhere, and have no
 * socket here, is there a table.
 */
#ifndef SLUICE_DATAGRAMS_BPF_H
#define SLUICE_DATAGRAMS_BPF_H

#include "identity.bpf.h"
#include "outcome.bpf.h"
#include "arrive.bpf.h"

#define IPV4_HEADER 20
#define IPV6_HEADER 40
#define IPPROTO_FRAGMENT 44
#define IPOPT_END 0
#define IPOPT_NOOP 1
#define IPOPT_LSRR 131
#define IPOPT_SSRR 137
#define MAX_OPTIONS 40		/* bytes of options of IPv4 */
#define PACKET_LOOPBACK 5	/* a copy of what leaves for a group, for those who hear it here */
#define UDP_CONNECTED 1		/* TCP_ESTABLISHED, which is what a connected UDP socket is in too */
#define ASKED 8			/* different receivers of one socket whose answers are waited for: musl asks three resolvers at once */

/* What is known of a socket that sends datagrams. */
struct sender {
	__u32 subject;
	__u32 generation;	/* under which the subject was found by the socket's own cgroup; 0: it was said by whose call it is */
	__u64 asked[ASKED];	/* identities and ports that it wrote to on this host, the latest ones */
	__u32 next;
	__u32 known;		/* 0: just made, and not filled in yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sender);
} senders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SLUICE_MAX_WRITERS);
	__type(key, struct sluice_writer);
	__type(value, __u32);	/* whose the address was when it wrote */
} writers SEC(".maps");

/* One end of a datagram. */
struct end {
	__u8 addr[16];
	__be16 port;
};

/* Who would hear a datagram. */
struct hearer {
	__u32 owner;
	bool asked;	/* it wrote to whom the datagram is from, or is connected to where it is from */
};

/* UDP to a group: whoever listens here hears it too, and not only one of them. */
static __always_inline bool is_group(const struct destination *to)
{
	__u32 ip;

	__builtin_memcpy(&ip, to->addr + 12, 4);
	return to->v4 ? (to->addr[12] & 0xf0) == 0xe0 || ip == 0xffffffff || ip == bpf_htonl(0x7fffffff) : to->addr[0] == 0xff;
}

/* The verifier knows what a pointer to a socket points to and forbids to look further; as a plain number it can be probed. */
static __always_inline __u64 address_of(struct bpf_sock *sk)
{
	__u64 number;

	bpf_probe_read_kernel(&number, sizeof(number), &sk);
	return number;
}

static __always_inline __u64 asked_of(__u32 identity, __be16 port)
{
	return (__u64)identity << 32 | 1 << 16 | port;
}

static __always_inline bool has_asked(const struct sender *kept, __u64 whom)
{
	for (int i = 0; i < ASKED; i++)
		if (kept->asked[i] == whom)
			return true;
	return false;
}

/* The socket in the caller's namespace that is bound to `at`, and speaks to `other` if it is connected. */
static __always_inline struct bpf_sock *bound_at(void *ctx, const __u8 *at, __be16 port, const struct end *other, bool v4)
{
	struct bpf_sock_tuple tuple = {};

	if (v4) {
		__builtin_memcpy(&tuple.ipv4.saddr, other->addr + 12, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, at + 12, 4);
		tuple.ipv4.sport = other->port;
		tuple.ipv4.dport = port;
		return bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(tuple.ipv6.saddr, other->addr, 16);
	__builtin_memcpy(tuple.ipv6.daddr, at, 16);
	tuple.ipv6.sport = other->port;
	tuple.ipv6.dport = port;
	return bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* Look up who hears what the socket `sock`, which has `port`, sends from `from` (NAT may have changed that). False: no
 * socket of this namespace does.
 */
static __always_inline bool look_up_hearer(void *ctx, const struct destination *to, const struct end *from, __u64 sock,
					   __be16 port, struct hearer *found)
{
	struct bpf_sock *sk = bound_at(ctx, to->addr, to->port, from, to->v4);
	struct sender *known;

	if (!sk)
		return false;
	found->owner = owner_of_port(address_of(sk));
	found->asked = sk->state == UDP_CONNECTED;
	known = found->asked ? NULL : bpf_sk_storage_get(&senders, sk, 0, 0);
	if (known)
		found->asked = has_asked(known, asked_of(sluice_owner(sock), port)) || has_asked(known, asked_of(SLUICE_ANY, port));
	bpf_sk_release(sk);
	return true;
}

/* Keep whom a socket has written to. */
static __always_inline void note_asked(struct sender *kept, __u32 identity, __be16 port)
{
	__u64 whom = asked_of(identity, port);

	if (!has_asked(kept, whom))
		kept->asked[kept->next++ % ASKED] = whom;
}

/* Whether `to`, which is not on this host, has written to a socket, and is still whose it was. */
static __always_inline bool has_written(__u64 cookie, const struct destination *to, __u32 identity)
{
	struct sluice_writer key = {.cookie = cookie, .port = to->port};
	__u32 *then;

	__builtin_memcpy(key.addr, to->addr, 16);
	then = bpf_map_lookup_elem(&writers, &key);
	/* The numbers of classes of addresses change with the policy. */
	return then && (*then == identity || (*then >= SLUICE_FIRST_CLASS && identity >= SLUICE_FIRST_CLASS));
}

static __always_inline struct sender *note_sender(struct bpf_sock *sk, __u32 subject, __u32 generation)
{
	struct sender *kept = bpf_sk_storage_get(&senders, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!kept)
		return NULL;
	kept->subject = subject;
	kept->generation = generation;
	__sync_lock_test_and_set(&kept->known, 1);	/* atomic: what is before it is seen before it */
	return kept;
}

/* Keep with a socket who called connect() or sendto() on it. Where that is its maker, a new policy may say anew who that is. */
static __always_inline bool keep_sender(struct bpf_sock *sk, const struct sluice_origin *origin)
{
	bool own = cgroup_of(address_of(sk)) == origin->cgroup;

	return note_sender(sk, origin->subject, own ? origin->generation : 0);
}

/* Who sends: kept with the socket; of one that never met the hooks above it is the cgroup that it was made in. */
static __always_inline struct sender *sender_of(struct bpf_sock *sk, __u32 generation)
{
	struct sender *kept = bpf_sk_storage_get(&senders, sk, 0, 0);

	if (kept && kept->known && kept->subject != SLUICE_UNRESOLVED && (!kept->generation || kept->generation == generation))
		return kept;
	return note_sender(sk, sluice_owner(address_of(sk)), generation);
}

enum reading {
	NOT_UDP,
	READ,
	UNREADABLE,	/* it says by itself that it will go elsewhere, or its ports cannot be found */
};

/* Whether options of IPv4 send a packet on to somewhere else. A global function: the verifier reads its loop only once. */
__noinline int sluice_is_source_routed(struct __sk_buff *skb, __u32 end)
{
	__u32 offset = IPV4_HEADER;

	for (int i = 0; i < MAX_OPTIONS && offset < end; i++) {
		__u8 option[2] = {};

		if (bpf_skb_load_bytes(skb, offset, option, 1) || option[0] == IPOPT_LSRR || option[0] == IPOPT_SSRR)
			return true;
		if (option[0] == IPOPT_END)
			return false;
		if (option[0] == IPOPT_NOOP)
			option[1] = 1;
		else if (bpf_skb_load_bytes(skb, offset + 1, option + 1, 1) || option[1] < 2)
			return true;
		offset += option[1];
	}
	return false;
}

/* Read both ends of a datagram out of its headers. */
static __always_inline enum reading read_ends(struct __sk_buff *skb, struct end *from, struct destination *to)
{
	__u32 offset = IPV6_HEADER;
	__be16 ports[2];
	__be32 ip4[2];
	__u8 first[8];

	to->v4 = skb->protocol == bpf_htons(ETH_P_IP);
	to->transport = IPPROTO_UDP;
	if (to->v4) {
		__u8 protocol;

		if (bpf_skb_load_bytes(skb, 9, &protocol, 1) || protocol != IPPROTO_UDP)
			return NOT_UDP;
		if (bpf_skb_load_bytes(skb, 0, first, sizeof(first)) || bpf_skb_load_bytes(skb, 12, ip4, sizeof(ip4)))
			return UNREADABLE;
		offset = (first[0] & 0xf) * 4;
		if ((first[6] & 0x1f) || first[7] || (offset > IPV4_HEADER && sluice_is_source_routed(skb, offset)))
			return UNREADABLE;
		map_v4(from->addr, ip4[0]);
		map_v4(to->addr, ip4[1]);
	} else {
		__u8 header[2];

		if (bpf_skb_load_bytes(skb, 6, header, 1))
			return UNREADABLE;
		for (int i = 0; i < MAX_EXTENSIONS && (header[0] == IPPROTO_HOPOPTS || header[0] == IPPROTO_DSTOPTS); i++) {
			if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
				return UNREADABLE;
			offset += (header[1] + 1) * 8;
		}
		if (header[0] != IPPROTO_UDP)
			return header[0] == IPPROTO_ROUTING || header[0] == IPPROTO_FRAGMENT || header[0] == IPPROTO_HOPOPTS ||
			       header[0] == IPPROTO_DSTOPTS ? UNREADABLE : NOT_UDP;
		if (bpf_skb_load_bytes(skb, 8, from->addr, 16) || bpf_skb_load_bytes(skb, 24, to->addr, 16))
			return UNREADABLE;
	}
	if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
		return UNREADABLE;
	from->port = ports[0];
	to->port = ports[1];
	return READ;
}

static __always_inline int drop(__u32 event)
{
	count(event);
	return DENY;
}

/* `sk` is about to send a datagram. */
static __always_inline int judge_departure(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct hearer hearer = {.owner = SLUICE_HOST};
	struct destination to = {};
	struct end from = {};
	struct sluice_address *class;
	struct sluice_control *now;
	struct sender *kept;
	__u32 zero = 0, generation, whom;
	bool heard = false, answers = false;
	__u64 sock = address_of(sk);

	now = bpf_map_lookup_elem(&control, &zero);
	generation = now ? *(volatile __u32 *)&now->generation : 0;
	if (!generation)	/* before the first policy is in */
		return ALLOW;
	kept = sender_of(sk, generation);
	if (!kept)
		return drop(SLUICE_EV_NO_ROOM);
	if (kept->subject == SLUICE_AGENT)
		return ALLOW;
	if (kept->subject == SLUICE_UNRESOLVED)
		return drop(SLUICE_EV_UNSETTLED);
	switch (read_ends(skb, &from, &to)) {
	case NOT_UDP:	/* what was judged is inside (IPsec) */
		return ALLOW;
	case UNREADABLE:
		return drop(SLUICE_EV_DATAGRAM_REFUSED);
	case READ:
		break;
	}
	class = class_of(&to, generation);
	if (!class)
		return drop(SLUICE_EV_UNSETTLED);
	whom = class->identity;
	if (class->flags & SLUICE_ADDRESS_LOCAL) {
		heard = look_up_hearer(skb, &to, &from, sock, bpf_htons(sk->src_port), &hearer);
		answers = hearer.asked;
		if (!heard && netns_of(sock) != config.agent_netns)
			hearer.owner = SLUICE_UNRESOLVED;
		/* Nobody's cgroup: then whoever owns the address. */
		whom = hearer.owner == SLUICE_HOST && is_workload(whom) ? whom : hearer.owner;
	}
	if (!may_pass(now, generation, kept->subject, whom, &to)) {
		if (!answers && !(class->flags & SLUICE_ADDRESS_LOCAL))
			answers = has_written(bpf_get_socket_cookie(skb), &to, whom);
		if (!answers)
			return drop(SLUICE_EV_DATAGRAM_REFUSED);
	}
	if (is_group(&to))
		note_asked(kept, SLUICE_ANY, to.port);
	else if (heard && hearer.owner != SLUICE_UNRESOLVED)
		note_asked(kept, hearer.owner, to.port);
	return ALLOW;
}

/* Whether another socket may be bound to the same port (SO_REUSEADDR), so that a look-up may have found the wrong one. */
static __always_inline bool may_share_port(__u64 sock)
{
	struct sock *sk = (struct sock *)sock;

	return BPF_CORE_READ_BITFIELD_PROBED(&sk->__sk_common, skc_reuse);
}

/* A datagram of this host is about to be put into the queue of `sk`. Most have been judged as they left. */
static __always_inline int judge_hearing(struct __sk_buff *skb, struct bpf_sock *sk)
{
	__u32 zero = 0, generation, whom, subject = SLUICE_UNRESOLVED;
	struct destination to = {};
	struct sluice_address *class;
	struct sluice_control *now;
	struct sender *kept, *own;
	struct bpf_sock *writer;
	struct end from = {}, here;
	enum reading read;
	bool asked;

	now = bpf_map_lookup_elem(&control, &zero);
	generation = now ? *(volatile __u32 *)&now->generation : 0;
	if (!generation)	/* before the first policy is in */
		return ALLOW;
	read = read_ends(skb, &from, &to);
	if (read != READ)
		return read == NOT_UDP ? ALLOW : drop(SLUICE_EV_DATAGRAM_REFUSED);
	class = class_of(&to, generation);
	if (class && class->flags & SLUICE_ADDRESS_LOCAL && !sk->bound_dev_if && !is_group(&to) && skb->pkt_type != PACKET_LOOPBACK)
		return ALLOW;	/* as it left, its hearer could be told */
	whom = called(&to, sluice_owner(address_of(sk)), generation);
	if (whom == SLUICE_ANY)
		return drop(SLUICE_EV_UNSETTLED);
	own = bpf_sk_storage_get(&senders, sk, 0, 0);
	asked = sk->state == UDP_CONNECTED || (own && has_asked(own, asked_of(SLUICE_ANY, from.port)));
	__builtin_memcpy(here.addr, to.addr, 16);
	here.port = to.port;
	writer = bound_at(skb, from.addr, from.port, &here, to.v4);
	if (writer) {
		__u64 sock = address_of(writer);

		kept = bpf_sk_storage_get(&senders, writer, 0, 0);
		if (!may_share_port(sock))
			subject = kept && kept->known ? kept->subject : sluice_owner(sock);
		if (own && has_asked(own, asked_of(sluice_owner(sock), from.port)))
			asked = true;
		bpf_sk_release(writer);
	}
	if (subject == SLUICE_AGENT || asked || may_pass(now, generation, subject, whom, &to))
		return ALLOW;
	return drop(SLUICE_EV_DATAGRAM_REFUSED);
}

#endif
