/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* sluice.h: what both sides of the kernel boundary read.
 *
 * This is the one truth for layouts and numbers. bpf/abi.py is generated from the BTF that the compiler derives from it
 * (make abi) and compared in CI. IPv4 addresses are always kept IPv4-mapped, in 16 bytes and network order.
 */
#ifndef SLUICE_H
#define SLUICE_H

/* What the connect hook does with a connection. */
enum sluice_action {
	SLUICE_REFUSE = 0,	/* EPERM to the caller */
	SLUICE_NATIVE = 1,	/* nothing to enforce: the kernel's own way, untouched */
	SLUICE_REDIRECT = 2,	/* to the agent, which reads the protocol */
};

/* Identities: who is at one end of a connection. */
enum sluice_identity {
	SLUICE_HOST = 0,		/* a process of this host that is no workload */
	SLUICE_FIRST_WORKLOAD = 1,	/* workloads: 1 to 0xfffe, given by the agent */
	SLUICE_UNRESOLVED = 0xffff,	/* on this host, but the hook cannot tell which process */
	SLUICE_FIRST_CLASS = 0x10000,	/* classes of addresses that all policies treat alike */
	SLUICE_AGENT = 0xfffffffe,	/* the agent's own processes: never redirected */
	SLUICE_ANY = 0xffffffff,	/* wildcard peer in a rule */
};

/* Why the hook did what it did; index of the counters. */
enum sluice_event {
	SLUICE_EV_NATIVE,
	SLUICE_EV_REFUSED,
	SLUICE_EV_REDIRECTED,
	SLUICE_EV_STALE_REFUSED,	/* heartbeat too old, fail closed */
	SLUICE_EV_STALE_OPEN,		/* heartbeat too old, every policy concerned says failOpen */
	SLUICE_EV_UNSETTLED,		/* a cgroup so new that the agent has not looked at it */
	SLUICE_EV_NO_GATEWAY,		/* client in another network namespace, and no address of ours leads there */
	SLUICE_EV_NO_ROOM,		/* a map was full */
	SLUICE_EV_MAX,
};

/* Sizes. Maps are not preallocated: a limit costs nothing until it is used. */
enum sluice_limit {
	SLUICE_MAX_DEPTH = 16,		/* cgroups are looked up to this depth; the agent refuses workloads below it */
	SLUICE_MAX_CGROUPS = 65536,
	SLUICE_MAX_ADDRESSES = 262144,	/* two generations of prefixes */
	SLUICE_MAX_RULES = 1048576,	/* two generations of rules */
	SLUICE_MAX_PENDING = 65536,	/* redirected connections that the agent has not accepted yet */
	SLUICE_MAX_WRITERS = 16384,	/* who wrote to a UDP socket lately: preallocated, and the oldest give way */
};

/* Bits of the `flags` fields below, which are those of different structures and share no meaning. */
enum sluice_flag {
	SLUICE_CGROUP_UNSETTLED = 1,	/* a glob may match a cgroup that is made below this one */
	SLUICE_ADDRESS_LOCAL = 1,	/* an address of this host: the listening socket says who it is */
	SLUICE_RULE_FAIL_OPEN = 1,	/* native instead of refused while the agent is dead */
};

/* config: fixed by the loader before the programs are loaded. */
struct sluice_config {
	__u64 agent_netns;		/* cookie of the namespace that the agent listens in */
	__u64 heartbeat_limit_ns;
	__u8 gateway4[16];		/* an address of ours for clients in other namespaces, or all zero */
	__u8 gateway6[16];
	__be16 agent_port;
	__u16 zero[3];
};

/* cgroups: cgroup id -> who its processes are. The nearest ancestor with an entry decides. */
struct sluice_cgroup {
	__u32 subject;
	__u32 flags;
};

/* addresses: longest prefix -> identity. */
struct sluice_address_key {
	__u32 prefixlen;	/* 32 (generation) + bits of addr */
	__u32 generation;
	__u8 addr[16];
};
struct sluice_address {
	__u32 identity;
	__u32 flags;
};

/* rules: (subject, peer, transport), longest port prefix -> action. Missing: native for HOST, else refuse. */
struct sluice_rule_key {
	__u32 prefixlen;	/* 112 + bits of port */
	__u32 generation;
	__u32 subject;
	__u32 peer;
	__u8 transport;		/* IPPROTO_TCP or IPPROTO_UDP */
	__u8 zero;
	__be16 port;
};
struct sluice_rule {
	__u32 action;
	__u32 flags;
};

/* What a redirected socket really asked for. Kept in socket storage (for getpeername) and in `pending` (for accept). */
struct sluice_origin {
	__u8 addr[16];
	__be16 port;
	__u16 v4;		/* the address is an IPv4 one */
	__u32 subject;
	__u32 peer;
	__u32 generation;
	__u64 cookie;		/* of the client's socket */
	__u64 cgroup;		/* of the process that called connect() */
	__u64 since_ns;		/* CLOCK_MONOTONIC, set when the SYN leaves */
};

/* pending: the client's end as the agent will see it -> origin. Tuples repeat across namespaces, hence the cookie. */
struct sluice_tuple {
	__u64 netns;		/* cookie of the namespace in which the agent accepts */
	__u8 client[16];
	__u8 agent[16];
	__be16 client_port;
	__be16 agent_port;
	__u32 zero;
};

/* writers: from where a datagram came to a UDP socket. The socket may answer there, whatever its policy. */
struct sluice_writer {
	__u64 cookie;
	__u8 addr[16];
	__be16 port;
	__u16 zero[3];
};

/* control: one entry, mapped into the agent's memory. */
struct sluice_control {
	__u64 heartbeat_ns;	/* CLOCK_MONOTONIC of the agent's last breath */
	__u32 generation;	/* of addresses and rules; switched when the new ones are all in */
	__u32 zero;
};

#endif
