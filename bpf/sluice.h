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
	SLUICE_EV_CLOSED,		/* nobody listens there, and who might is policed: ECONNREFUSED */
	SLUICE_EV_SYN_REFUSED,		/* a SYN arrived at a listener that its sender may not reach past the agent */
	SLUICE_EV_SYN_UNKNOWN,		/* a SYN of this host arrived at a policed listener, and no socket is known to have sent it */
	SLUICE_EV_ROOTLESS,		/* client in a network namespace that is not root's: redirected from there it could be anybody */
	SLUICE_EV_CROWDED,		/* a subject with too many connections on their way to the agent */
	SLUICE_EV_DATAGRAM_REFUSED,	/* as it was about to leave, or to be heard */
	SLUICE_EV_MAX,
};

/* Sizes. Maps are not preallocated: a limit costs nothing until it is used. */
enum sluice_limit {
	SLUICE_MAX_DEPTH = 16,		/* cgroups are looked up to this depth; the agent refuses workloads below it */
	SLUICE_MAX_GROUP = 256,		/* sockets of one port (SO_REUSEPORT), one a CPU of a large host; of more, nobody can tell whose */
	SLUICE_MAX_CGROUPS = 65536,
	SLUICE_MAX_GRAVES = 16384,	/* removed cgroups of workloads, whose sockets may live; the oldest give way, and are nobody's */
	SLUICE_MAX_DOOMED = 65536,	/* connections that are ended at once; of more, the others a moment later */
	SLUICE_MAX_PORTS = 65536,	/* at which a socket bound to a device has listened: all that there are */
	SLUICE_MAX_ADDRESSES = 262144,	/* two generations of prefixes */
	SLUICE_MAX_RULES = 1048576,	/* two generations of rules */
	SLUICE_MAX_PENDING = 65536,	/* redirected connections that the agent has not accepted yet */
	SLUICE_MAX_WAITING = 8192,	/* of these, unanswered ones of one subject: more than the agent's backlog, and not all of them */
	SLUICE_MAX_WRITERS = 16384,	/* who wrote to a UDP socket from elsewhere lately: preallocated, and the oldest give way */
};

/* Bits of the `flags` fields below, which are those of different structures and share no meaning. */
enum sluice_flag {
	SLUICE_CGROUP_UNSETTLED = 1,	/* a glob may match a cgroup that is made below this one */
	SLUICE_ADDRESS_LOCAL = 1,	/* an address of this host: the listening socket says who it is */
	SLUICE_RULE_FAIL_OPEN = 1,	/* native instead of refused while the agent is dead */
	SLUICE_RULE_CARRIED = 2,		/* the kernel may carry such connections' calls, if their workloads let it */
	SLUICE_CGROUP_ACCELERATE = 2,	/* its workload's connections may be carried by the kernel */
	SLUICE_ORIGIN_ACCELERATE = 1,	/* the same of one connection */
	SLUICE_CONTROL_TRANSLATED = 1,	/* something on this host may lead a local address elsewhere (NAT) */
	SLUICE_ORIGIN_WAITS = 2,	/* its SYN is not answered yet */
};

/* config: fixed by the loader before the programs are loaded. */
struct sluice_config {
	__u64 agent_netns;		/* cookie of the namespace that the agent listens in */
	__u64 heartbeat_limit_ns;
	__u8 gateway4[16];		/* an address of ours for clients in other namespaces, or all zero */
	__u8 gateway6[16];
	__be16 agent_port;
	__u8 no_ipv6;			/* ::1 is no address there: who is pointed to it would leave the host */
	__u8 zero[5];
};

/* cgroups: cgroup id -> who its processes are. The nearest ancestor with an entry decides. */
struct sluice_cgroup {
	__u32 subject;
	__u32 flags;
};

/* graves: the same of cgroups that are gone. Their ids are never given again. */

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

/* What a redirected socket really asked for. Kept with it (for getpeername), in `pending`, and with the socket that is accepted. */
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
	__u32 flags;
	__u32 sequence;		/* number of the client's first byte, set when the SYN leaves */
	__u64 sock;		/* address of the client's socket, if it is in the map of verdict.bpf.c */
	__u32 first;		/* number of the first byte to it */
	__u32 zero;
};

/* pending: the client's end as the agent will see it -> origin. Tuples repeat across namespaces, first sequence numbers do not. */
struct sluice_tuple {
	__u64 netns;		/* cookie of the namespace in which the agent accepts */
	__u8 client[16];
	__u8 agent[16];
	__be16 client_port;
	__be16 agent_port;
	__u32 sequence;		/* number of the client's first byte */
};

/* What existing.bpf.c tells of a TCP socket. */
struct sluice_socket {
	__u8 local[16];
	__u8 remote[16];
	__be16 local_port;
	__be16 remote_port;
	__u16 state;		/* enum of the kernel: BPF_TCP_* */
	__u16 caller;		/* it is known to have called connect(), and by whom */
	__u32 owner;		/* whose the cgroup is that it was made in */
	__u32 subject;		/* who called connect(), where that is known; else the owner */
	__u64 cookie;
};

/* writers: from where outside of this host a datagram came to a UDP socket. The socket may answer there, whatever its policy. */
struct sluice_writer {
	__u64 cookie;
	__u8 addr[16];
	__be16 port;
	__u16 zero[3];
};

/* The kernel path (verdict.bpf.c): who has the wheel of a connection. Only the agent leaves OFF, and only it goes back there. */
enum sluice_wheel {
	SLUICE_WHEEL_OFF = 0,		/* the relay; the programs let everything pass to it */
	SLUICE_WHEEL_BUSY = 1,		/* a program is at it just now */
	SLUICE_WHEEL_IDLE = 2,		/* the kernel, between two calls */
	SLUICE_WHEEL_WAIT = 3,		/* the kernel; the server has a whole request and has not answered */
	SLUICE_WHEEL_REPLY = 4,		/* the kernel; a body is still to come from the server */
};

/* Which end of a connection a socket is. */
enum sluice_role {
	SLUICE_ROLE_CLIENT = 1,		/* the application that called */
	SLUICE_ROLE_UPSTREAM = 2,	/* the agent's, on its way to the server */
	SLUICE_ROLE_SERVER = 3,		/* the application that was called */
	SLUICE_ROLE_INJECTOR = 4,	/* a worker's own, whose bytes go into the queue of the application that it names */
};

/* How the relay's bytes get to the server. The kernel and the agent each decide it once, whoever comes first. */
enum sluice_access {
	SLUICE_ACCESS_OPEN = 0,		/* not decided: the server's socket has not been seen */
	SLUICE_ACCESS_MAP = 1,		/* its socket is in the map, or about to be */
	SLUICE_ACCESS_TCP = 2,		/* it never will be */
};

/* What a cell of an automaton asks for, in its upper three bits. */
enum sluice_step {
	SLUICE_STEP_PLAIN = 0,
	SLUICE_STEP_LENGTH = 1,		/* the byte is the next digit of the body's length */
	SLUICE_STEP_NO_REPLY_BODY = 2,	/* whatever the reply's head says */
	SLUICE_STEP_ACCEPT = 3,		/* the head ends here, and its body is as long as the digits say */
	SLUICE_STEP_STATUS = 4,		/* the byte is the next digit of the status */
	SLUICE_STEP_ACCEPT_BARE = 5,	/* the head ends here, and says nothing about a body */
};

/* Why bytes went to the relay; index of the counters. */
enum sluice_fallback {
	SLUICE_FB_OFF,			/* the relay has the wheel */
	SLUICE_FB_BUSY,			/* the other end is at it just now */
	SLUICE_FB_EARLY,		/* not this end's turn: a pipelined request, a reply before the end of its request */
	SLUICE_FB_STALE,		/* no heartbeat, or the policy has changed */
	SLUICE_FB_LEDGER,		/* bytes before these are still on their way through the relay */
	SLUICE_FB_OWED,			/* the relay still has bytes for the receiver */
	SLUICE_FB_MEMORY,		/* the receiver is slow */
	SLUICE_FB_GONE,			/* the receiver is closing, or not ours any more */
	SLUICE_FB_REQUEST,		/* a head that is not proven: incomplete, several, or to be judged by the proxy */
	SLUICE_FB_REPLY,		/* the same of a reply */
	SLUICE_FB_OVERRUN,		/* more bytes than the body has */
	SLUICE_FB_RECORDS,		/* no room for the record */
	SLUICE_FB_SENDERS,		/* what another task sends may still be on its way */
	SLUICE_FB_PIPELINE,		/* as many calls are open as there is room for */
	SLUICE_FB_TORN,			/* the receiver's kernel took a message in part, out of memory: the connection has to end */
	SLUICE_FB_MAX,
};

enum sluice_path_limit {
	SLUICE_MAX_FLOWS = 16384,	/* connections that the kernel may carry; more of them are relayed */
	SLUICE_MAX_TABLES = 1024,	/* automata: one for each pair of workloads and port that is in use */
	SLUICE_MAX_ROWS = 65536,	/* states of all automata: 8 MiB */
	SLUICE_MAX_WORKERS = 64,
	SLUICE_HEAD_BYTES = 1104,	/* a longer head is the relay's; the automata count on it (HEAD_PROOF_MAX) */
	SLUICE_CELLS = 64,		/* classes of bytes */
	SLUICE_RING_BYTES = 2097152,	/* finished calls on their way to a worker's records: a few thousand */
	SLUICE_REPLY_TABLE = 0,		/* the automaton of reply heads */
	SLUICE_PREFIXES = 8,		/* of one connection */
	SLUICE_MAX_PREFIXES = 65536,	/* of all; 2 KiB each, and not preallocated */
	SLUICE_PIPELINE = 16,		/* calls that are open at once, of a connection with frames */
	SLUICE_MAX_CALLS = 65536,	/* of all; 2 KiB each, and not preallocated */
	SLUICE_FRAME_START = 24,	/* bytes of a reply that must be there at first, so that its error can be told (parsers/kafka) */
	SLUICE_QUEUE_BYTES = 4194304,	/* what may wait for a receiver before its sender is slowed down by TCP again */
};

/* What stands in place of a table's number where requests are frames, judged by their prefixes. */
enum sluice_framing {
	SLUICE_FRAMES = 0xffffffff,
};

/* flows: what the agent says of a connection. Mapped into its memory; it fills this in before it lets go of the wheel. */
struct sluice_flow {
	__u32 wheel;
	__u32 generation;
	__u32 table;
	__u32 worker;
	/* The ledger: bytes that the relay has read from its two sockets. While it has the wheel they move on; they are right
	 * when it lets go. */
	__u32 down_read;
	__u32 up_read;
	__u32 owed;		/* the end of a reply is still in the agent's hands: nothing is carried to the client */
	__u32 first;		/* number of the connection's next call, when the agent lets go */
	__u64 client;		/* cookie of the calling application's socket; 0: nobody's */
};

/* ends: what the programs know of the two applications' sockets of a flow. Mapped into the agent's memory. */
struct sluice_ends {
	__u64 carried_ns;	/* CLOCK_MONOTONIC when bytes were last carried */
	__u64 server;		/* cookie */
	__u64 client_sock;	/* addresses */
	__u64 server_sock;
	__u64 sender;		/* the task whose request bytes, already carried, may not be in the server's queue yet; 0: they are */
	__u64 replying;		/* reply bytes have been carried that may not be in the client's queue yet */
	__u32 client_received;	/* sequence numbers before the first byte; no byte ever comes over TCP */
	__u32 server_received;
	__u32 begun;		/* calls since the agent let go of the wheel */
	__u32 answered;		/* of these */
	__u32 torn;		/* a message was taken in part: nothing is to be carried, or relayed, any more */
	__u32 dialled;		/* first sequence number from the agent to the server */
	__u32 access;		/* enum sluice_access, to the server */
	__u32 zero;
};

/* injections: for whom the next bytes on a worker's injector are, and what became of the last ones. Mapped into its memory. */
struct sluice_injection {
	__u64 cookie;		/* of the application's socket */
	__u64 sock;
	__u32 first;		/* number of the first byte that it can have got: another connection of the same socket has another */
	__u32 waiting;		/* bytes that wait for its reader, these included */
	__u64 strayed;		/* bytes, in all, that have found nobody: the worker reads them at the injector's other end */
};

/* The argument of sluice_queued. */
struct sluice_queue {
	__u64 cookie;
	__u64 sock;
	__u32 first;
	__u32 zero;
};

/* lanes: what the programs know of a socket, in its storage. */
struct sluice_lane {
	__u64 cookie;
	__u64 sock;
	__u32 role;
	__u32 flow;			/* 0: not known yet */
	__u32 sent;			/* sequence numbers before the first byte */
	__u32 received;
};

/* upstreams: what a server's socket is recognised by. Tuples repeat across namespaces, first sequence numbers do not. */
struct sluice_upstream {
	__u32 flow;
	__u32 sequence;
};

/* rows: what a state does with a class of bytes. State 0 is that of a head that is not proven. */
struct sluice_rows {
	__u16 cells[SLUICE_MAX_ROWS * SLUICE_CELLS];	/* next state, relative to its table's first row; a step in bits 13 to 15 */
};
struct sluice_table {
	__u32 base;
	__u32 start;
	__u8 classes[256];		/* of bytes */
};

/* What a head says, once it is proven. */
struct sluice_proof {
	__u64 length;			/* of the body, in bytes */
	__u32 head;			/* length of the head, in bytes */
	__u16 status;
	__u8 no_reply_body;
	__u8 bare;			/* the head says nothing about a body */
};

/* prefixes: beginnings of frames that policy allows whatever follows them. A frame is such a one if it is the same in the bits
 * that its mask has set. Keyed by flow * SLUICE_PREFIXES + number, without gaps.
 */
struct sluice_prefix {
	__u32 length;			/* in bytes; behind it the mask is zero */
	__u32 zero;
	__u64 data[SLUICE_HEAD_BYTES / 8];
	__u64 mask[SLUICE_HEAD_BYTES / 8];
};

/* calls: what the kernel carries on a flow, and as far as the end of its head also the record of it when it is finished. Keyed by
 * flow * SLUICE_PIPELINE. Where requests are frames: plus the number modulo SLUICE_PIPELINE, and the beginning of the reply
 * stands right behind that of the request, in the record as well.
 */
struct sluice_call {
	__u64 began_ns;			/* CLOCK_MONOTONIC */
	__u64 ended_ns;
	__u64 request_bytes;		/* carried: all of them, head and body */
	__u64 reply_bytes;		/* carried so far */
	__u64 reply_left;
	__u32 flow;
	__u32 generation;
	__u64 client;
	__u16 head_length;
	__u16 reply_head_length;
	__u16 status;
	__u8 no_reply_body;
	__u8 zero;
	__u32 number;			/* of the connection's calls, from 0 */
	__u32 zeros;
	__u8 head[SLUICE_HEAD_BYTES];
	__u8 reply_head[SLUICE_HEAD_BYTES];
};

/* The argument of sluice_take and sluice_reach. */
struct sluice_take {
	__u32 flow;
	__u32 zero;
};

/* control: one entry, mapped into the agent's memory. */
struct sluice_control {
	__u64 heartbeat_ns;	/* CLOCK_MONOTONIC of the agent's last breath */
	__u32 generation;	/* of addresses and rules; switched when the new ones are all in */
	__u32 flags;
};

#endif
