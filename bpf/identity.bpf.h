/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* identity.bpf.h: who calls, who is called, and what the rules say of the two. */
#ifndef SLUICE_IDENTITY_BPF_H
#define SLUICE_IDENTITY_BPF_H

#include "common.bpf.h"

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define CSS_ONLINE 2	/* of the kernel: unset as soon as a cgroup is removed */

/* Kernel structures, as far as we read them; CO-RE finds the real offsets on the running kernel. */
struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));
struct cgroup_subsys_state {
	unsigned int flags;
} __attribute__((preserve_access_index));
struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[];
} __attribute__((preserve_access_index));
struct sock_cgroup_data {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));
struct user_namespace {
	int level;	/* 0: the first one, of the host */
} __attribute__((preserve_access_index));
struct net {
	struct user_namespace *user_ns;
	__u64 net_cookie;
} __attribute__((preserve_access_index));
typedef struct {
	struct net *net;
} possible_net_t;
struct in6_addr {
	__u8 bytes[16];
};
struct sock_common {
	unsigned short skc_family;
	int skc_bound_dev_if;
	volatile unsigned char skc_state;
	unsigned char skc_reuse : 4;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));
struct sock_reuseport {
	__u16 num_socks;
	struct sock *socks[];
} __attribute__((preserve_access_index));
struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
	struct sock_reuseport *sk_reuseport_cb;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_CGROUPS);
	__type(key, __u64);
	__type(value, struct sluice_cgroup);
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_GRAVES);
	__type(key, __u64);
	__type(value, struct sluice_cgroup);
} graves SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_ADDRESSES);
	__type(key, struct sluice_address_key);
	__type(value, struct sluice_address);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_RULES);
	__type(key, struct sluice_rule_key);
	__type(value, struct sluice_rule);
} rules SEC(".maps");

/* Where a socket wants to go, whatever the family of the call. */
struct destination {
	__u8 addr[16];
	__be16 port;
	__u8 transport;
	bool v4;
};

/* The caller's socket. Without the barrier clang keeps the address of ctx->sk for several uses, which the verifier forbids. */
static __always_inline struct bpf_sock *socket_of(struct bpf_sock_addr *ctx)
{
	barrier_var(ctx);
	return ctx->sk;
}

static __always_inline bool is_workload(__u32 identity)
{
	return identity >= SLUICE_FIRST_WORKLOAD && identity < SLUICE_UNRESOLVED;
}

/* The two functions that walk up the cgroup tree are global: the verifier reads them once, not at every place of use. */

/* Who calls. */
struct caller {
	__u64 cgroup;
	__u32 subject;
	bool unsettled;	/* below a place where workloads appear, in a cgroup that is newer than the agent's last look */
	bool accelerated;
};

/* The nearest ancestor of the caller's cgroup that the agent knows says who it is. */
__noinline int sluice_identify(struct caller *who)
{
	struct sluice_cgroup *found;
	__u64 id;

	if (!who)
		return 0;
	id = bpf_get_current_cgroup_id();
	who->cgroup = id;
	found = bpf_map_lookup_elem(&cgroups, &id);
	for (int level = SLUICE_MAX_DEPTH; level >= 0 && !found; level--) {
		id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id || id == who->cgroup)
			continue;
		found = bpf_map_lookup_elem(&cgroups, &id);
		who->unsettled = found && found->flags & SLUICE_CGROUP_UNSETTLED;
	}
	who->subject = found ? found->subject : SLUICE_HOST;
	who->accelerated = found && found->flags & SLUICE_CGROUP_ACCELERATE;
	return 0;
}

/* The id of the cgroup that a socket (an address of struct sock) was made in. */
static __always_inline __u64 cgroup_of(__u64 sock)
{
	struct sock *sk = (struct sock *)sock;

	return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
}

/* The cookie of a socket's network namespace. */
static __always_inline __u64 netns_of(__u64 sock)
{
	struct sock *sk = (struct sock *)sock;

	return BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
}

/* The search for the nearest ancestor of a cgroup that the agent knows. */
struct search {
	struct cgroup *of;
	int level;
	bool removed;	/* the cgroup below is gone, and nobody remembers it */
	__u32 who;
};

static long look_at_ancestor(__u32 index, struct search *search)
{
	int level = search->level - index;
	struct cgroup *of = search->of;
	struct cgroup *ancestor = BPF_CORE_READ(of, ancestors[level]);
	bool gone = !(BPF_CORE_READ(ancestor, self.flags) & CSS_ONLINE);
	__u64 id = BPF_CORE_READ(ancestor, kn, id);
	struct sluice_cgroup *found;

	if (search->removed && !gone) {
		search->who = SLUICE_UNRESOLVED;
		return 1;
	}
	search->removed = gone;
	found = bpf_map_lookup_elem(&cgroups, &id);
	if (!found && gone)
		found = bpf_map_lookup_elem(&graves, &id);
	if (!found)
		return 0;
	search->who = index && found->flags & SLUICE_CGROUP_UNSETTLED ? SLUICE_UNRESOLVED : found->subject;
	return 1;
}

/* Whose socket (an address of struct sock) this is: the same for the cgroup that a socket was made in. A socket may outlive that
 * cgroup, which may be made anew under its name: it stays its workload's as long as anybody knows whose it was.
 */
__noinline __u32 sluice_owner(__u64 sock)
{
	struct sock *sk = (struct sock *)sock;
	struct cgroup *of = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	struct search search = {.of = of, .who = SLUICE_HOST};

	search.level = BPF_CORE_READ(of, level);
	if (search.level > SLUICE_MAX_DEPTH)
		search.level = SLUICE_MAX_DEPTH;
	bpf_loop(search.level + 1, look_at_ancestor, &search, 0);
	return search.who;
}

/* Sockets that share a port, and whether all are the same one's. */
struct sharing {
	struct sock_reuseport *group;
	struct cgroup *of;
	__u32 who;
};

static long look_at_member(__u32 index, struct sharing *sharing)
{
	struct sock_reuseport *group = sharing->group;
	struct sock *member = BPF_CORE_READ(group, socks[index]);

	if (BPF_CORE_READ(member, sk_cgrp_data.cgroup) == sharing->of || sluice_owner((__u64)member) == sharing->who)
		return 0;
	sharing->who = SLUICE_UNRESOLVED;
	return 1;
}

/* The same of a listening socket. Where several share a port (SO_REUSEPORT), who gets a connection is chosen later, maybe by a
 * program of one of them: it is the port of all of them, or it cannot be told whose it is.
 */
static __always_inline __u32 owner_of_port(__u64 sock)
{
	struct sock *sk = (struct sock *)sock;
	struct sock_reuseport *group = BPF_CORE_READ(sk, sk_reuseport_cb);
	struct cgroup *of = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	struct sharing sharing = {.group = group, .of = of, .who = sluice_owner(sock)};
	__u16 members;

	if (!group)
		return sharing.who;
	members = BPF_CORE_READ(group, num_socks);
	if (members > SLUICE_MAX_GROUP)
		return SLUICE_UNRESOLVED;
	bpf_loop(members, look_at_member, &sharing, 0);
	return sharing.who;
}

/* Who listens at a local address; `closed`: nobody does. A socket that does not exist can be nobody's; in another namespace only
 * the agent knows.
 */
static __always_inline __u32 listener(struct bpf_sock_addr *ctx, const struct destination *to, bool *closed)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 who, size;
	__u64 sock;

	if (to->v4) {
		__builtin_memcpy(&tuple.ipv4.daddr, to->addr + 12, 4);
		tuple.ipv4.dport = to->port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.daddr, to->addr, 16);
		tuple.ipv6.dport = to->port;
		size = sizeof(tuple.ipv6);
	}
	if (to->transport == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk) {
		*closed = bpf_get_netns_cookie(ctx) == config.agent_netns;
		return *closed ? SLUICE_HOST : SLUICE_UNRESOLVED;
	}
	/* The verifier knows what sk points to and forbids to look further; as a plain number it can be probed. */
	bpf_probe_read_kernel(&sock, sizeof(sock), &sk);
	who = owner_of_port(sock);
	bpf_sk_release(sk);
	return who;
}

/* What an address is. Every generation knows every address: NULL means that it is gone. */
static __always_inline struct sluice_address *class_of(const struct destination *to, __u32 generation)
{
	struct sluice_address_key key = {.prefixlen = 160, .generation = generation};

	__builtin_memcpy(key.addr, to->addr, 16);
	return bpf_map_lookup_elem(&addresses, &key);
}

/* Who is called; SLUICE_ANY: the generation is gone. */
static __always_inline __u32 peer(struct bpf_sock_addr *ctx, const struct destination *to, __u32 generation, bool *closed)
{
	struct sluice_address *class = class_of(to, generation);
	__u32 who;

	if (!class)
		return SLUICE_ANY;
	if (!(class->flags & SLUICE_ADDRESS_LOCAL))
		return class->identity;
	who = listener(ctx, to, closed);
	/* Nobody's cgroup: then whoever owns the address. */
	return who == SLUICE_HOST && is_workload(class->identity) ? class->identity : who;
}

static __always_inline struct sluice_rule *rule(__u32 generation, __u32 subject, __u32 whom, const struct destination *to)
{
	struct sluice_rule_key key = {
		.prefixlen = 128,
		.generation = generation,
		.subject = subject,
		.peer = whom,
		.transport = to->transport,
		.port = to->port,
	};
	struct sluice_rule *found = bpf_map_lookup_elem(&rules, &key);

	if (found)
		return found;
	key.peer = SLUICE_ANY;
	return bpf_map_lookup_elem(&rules, &key);
}

/* Where no rule says anything, the host is free, and whoever has rules is not. */
static __always_inline __u32 action_of(const struct sluice_rule *found, __u32 subject)
{
	return found ? found->action : subject == SLUICE_HOST ? SLUICE_NATIVE : SLUICE_REFUSE;
}

/* Whether the agent lives. */
static __always_inline bool beats(const struct sluice_control *now)
{
	return (__s64)(bpf_ktime_get_ns() - now->heartbeat_ns) < (__s64)config.heartbeat_limit_ns;
}

#endif
