// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* verdict.bpf.c: the kernel path. What policy provably allows goes from application to application, past the agent.
 *
 *   sock_ops   puts the sockets of both applications into one map, at ESTABLISHED, before any byte exists
 *   sk_msg     runs when an application sends: carries the message into the other one's queue, or lets it go its TCP way;
 *              and when a worker of the agent sends on its injector: puts the message into the queue that the worker names
 *   syscall    for the agent: takes the wheel back, asks how much waits in a queue
 *
 * The programs hold no policy and no protocol. Of a text protocol, automata that the agent has made say which heads are allowed
 * and how long their bodies are. Of a protocol of frames, each led by its length, the agent leaves the beginnings of frames that
 * it has judged. They accept less than policy allows, never more. Whatever is not proven goes to the relay, by SK_PASS.
 * SK_DROP is never returned: it would stay with the socket for ever. Sockets never leave the map before their connection is
 * over: that would lose what is queued.
 *
 * A socket in the map has one queue: what is carried to it and what the relay injects. TCP brings it nothing but the end.
 *
 * One side has the wheel at a time (struct sluice_flow). The agent lets go of it when it holds no byte of the connection but
 * those of a reply, and writes down what it has read so far. The programs compare that with the sockets' own sequence numbers:
 * as long as they agree, no byte is on the relay's way, and a carried one can overtake none.
 */
#include <stddef.h>
#include "common.bpf.h"
#include "pending.bpf.h"

#define TCP_ESTABLISHED 1
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define STATE_MASK 0x1fff
#define STEP_SHIFT 13
#define SPINS 8192
#define TRIES 8

/* Kernel structures, as far as we read them; CO-RE finds the real offsets on the running kernel. */
typedef struct {
	__s64 counter;
} atomic64;
typedef struct {
	int counter;
} atomic;
struct sock_common {
	volatile unsigned char skc_state;
	atomic64 skc_cookie;
} __attribute__((preserve_access_index));
struct sock {
	struct sock_common __sk_common;
	struct {
		atomic rmem_alloc;
	} sk_backlog;
	void *sk_user_data;
} __attribute__((preserve_access_index));
struct sk_psock {	/* what a socket has while it is in a map */
	struct {
		atomic refs;
	} refcnt;
} __attribute__((preserve_access_index));
struct inet_sock {
	struct sock sk;
} __attribute__((preserve_access_index));
struct inet_connection_sock {
	struct inet_sock icsk_inet;
} __attribute__((preserve_access_index));
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 rcv_nxt;
	__u32 write_seq;
	bool is_mptcp;
} __attribute__((preserve_access_index));
struct sk_msg {	/* what a program sees as struct sk_msg_md */
	struct {
		__u32 start;
	} sg;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 2 * SLUICE_MAX_FLOWS);
	__type(key, __u64);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sluice_lane);
} lanes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLUICE_MAX_FLOWS);
	__type(key, __u32);
	__type(value, struct sluice_flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLUICE_MAX_FLOWS);
	__type(key, __u32);
	__type(value, struct sluice_ends);
} ends SEC(".maps");

/* One for each worker. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLUICE_MAX_WORKERS);
	__type(key, __u32);
	__type(value, struct sluice_injection);
} injections SEC(".maps");

/* Of a client's socket: cookie -> flow. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_FLOWS);
	__type(key, __u64);
	__type(value, __u32);
} callers SEC(".maps");

/* Entries of servers that are elsewhere are never taken out: the oldest give way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SLUICE_MAX_FLOWS);
	__type(key, struct sluice_tuple);
	__type(value, struct sluice_upstream);
} upstreams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_CALLS);
	__type(key, __u32);
	__type(value, struct sluice_call);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_PREFIXES);
	__type(key, __u32);
	__type(value, struct sluice_prefix);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLUICE_MAX_TABLES);
	__type(key, __u32);
	__type(value, struct sluice_table);
} tables SEC(".maps");

/* One entry, so that a step of an automaton is one load; mapped into the agent's memory, which writes them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_rows);
} rows SEC(".maps");

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SLUICE_RING_BYTES);
};
/* Filled by the agent: one for each worker. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLUICE_MAX_WORKERS);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLUICE_FB_MAX);
	__type(key, __u32);
	__type(value, __u64);
} fallbacks SEC(".maps");

static __always_inline bool fall_back(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&fallbacks, &reason);

	if (n)
		(*n)++;
	return false;
}

/* Sockets. */

/* The connection from the agent's end to the server's, in the agent's words or in the server's. */
static __always_inline void name(const volatile struct bpf_sock_ops *ctx, bool v4, bool server, struct sluice_tuple *tuple)
{
	__u8 *local = server ? tuple->agent : tuple->client;
	__u8 *remote = server ? tuple->client : tuple->agent;
	__be16 local_port = bpf_htons(ctx->local_port), remote_port = bpf_htons(bpf_ntohl(ctx->remote_port));

	addresses_of(ctx, v4, local, remote);
	tuple->client_port = server ? remote_port : local_port;
	tuple->agent_port = server ? local_port : remote_port;
}

/* Put an application's socket into the map. From now on its messages come by sluice_message. */
static __always_inline struct sluice_lane *enlist(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp,
						  __u32 role, __u32 flow)
{
	struct sluice_lane lane = {.role = role, .flow = flow}, *kept;

	if (tcp->is_mptcp)	/* a subflow carries more than its application's bytes */
		return NULL;
	lane.cookie = bpf_get_socket_cookie(ctx);
	lane.sock = (__u64)tcp;
	lane.sent = tcp->write_seq;
	lane.received = tcp->rcv_nxt;
	kept = bpf_sk_storage_get(&lanes, sk, &lane, BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept)
		return NULL;
	if (!bpf_sock_hash_update(ctx, &sockets, &lane.cookie, BPF_ANY))
		return kept;
	bpf_sk_storage_delete(&lanes, sk);	/* it is in somebody else's map, or there is no room */
	return NULL;
}

/* An application connects a socket again, to somewhere else, or maybe to where it may not be accelerated. It keeps its cookie, but
 * neither its place in the map, nor what is unread of the old connection, nor any of that one's rights, which the agent may not
 * have taken back yet.
 */
static __always_inline void leave(struct bpf_sock *sk, struct sluice_lane *lane)
{
	bpf_map_delete_elem(&sockets, &lane->cookie);
	bpf_map_delete_elem(&callers, &lane->cookie);
	bpf_sk_storage_delete(&lanes, sk);
}

static __always_inline void on_connect(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp)
{
	struct sluice_lane *lane = bpf_sk_storage_get(&lanes, sk, 0, 0);
	struct sluice_upstream upstream = {};
	struct sluice_tuple tuple = {};
	struct sluice_ends *both;

	if (!lane)
		return;
	if (lane->role != SLUICE_ROLE_UPSTREAM) {
		leave(sk, lane);
		return;
	}
	upstream.flow = lane->flow;
	upstream.sequence = tcp->write_seq + 1;
	both = bpf_map_lookup_elem(&ends, &upstream.flow);
	if (!both)
		return;
	both->dialled = upstream.sequence;
	name(ctx, ctx->family == AF_INET, false, &tuple);
	bpf_map_update_elem(&upstreams, &tuple, &upstream, BPF_ANY);
}

static __always_inline void on_connected(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp)
{
	struct sluice_origin *origin = bpf_sk_storage_get(&origins, sk, 0, 0), *asked;
	struct sluice_tuple tuple = {};
	struct sluice_lane *lane;

	if (!origin || !(origin->flags & SLUICE_ORIGIN_ACCELERATE))
		return;
	/* With TCP's fast open there are bytes before this moment; the ledger will never agree, and nothing of its is carried. */
	lane = enlist(ctx, sk, tcp, SLUICE_ROLE_CLIENT, 0);
	if (!lane)
		return;
	/* The agent learns of it with the connection, which it has not accepted: the handshake's last ACK follows us. */
	name(ctx, origin->v4, false, &tuple);
	tuple.netns = config.agent_netns;
	tuple.agent_port = config.agent_port;
	tuple.sequence = origin->sequence;
	asked = bpf_map_lookup_elem(&pending, &tuple);
	if (asked) {
		asked->first = lane->received;
		asked->sock = lane->sock;
	}
}

static __always_inline void on_accept(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp)
{
	struct sluice_upstream *upstream;
	struct sluice_tuple tuple = {};
	struct sluice_lane *lane;
	struct sluice_ends *both;
	__u32 index;

	name(ctx, ctx->family == AF_INET, true, &tuple);
	upstream = bpf_map_lookup_elem(&upstreams, &tuple);
	if (!upstream || upstream->sequence != tcp->rcv_nxt)
		return;
	index = upstream->flow;
	bpf_map_delete_elem(&upstreams, &tuple);
	both = bpf_map_lookup_elem(&ends, &index);
	if (!both || both->dialled != tcp->rcv_nxt)	/* the flow is another connection's by now */
		return;
	if (__sync_val_compare_and_swap(&both->access, SLUICE_ACCESS_OPEN, SLUICE_ACCESS_MAP) != SLUICE_ACCESS_OPEN)
		return;
	lane = enlist(ctx, sk, tcp, SLUICE_ROLE_SERVER, index);
	if (!lane) {
		both->access = SLUICE_ACCESS_TCP;
		return;
	}
	both->server_sock = lane->sock;
	both->server_received = lane->received;
	both->server = lane->cookie;
}

SEC("sockops")
int sluice_enlist(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tcp;

	if (!sk || (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
		    ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB))
		return 1;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_connect(ctx, sk, tcp);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		on_connected(ctx, sk, tcp);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		on_accept(ctx, sk, tcp);
		break;
	}
	return 1;
}

/* The engine. */

/* A head as the argument of a global function, whose size the verifier must know. */
struct head {
	__u8 bytes[SLUICE_HEAD_BYTES];
};

/* Run an automaton over the head at the beginning of a message and keep a copy of it. Nonzero: the head is proven.
 * Global, so that the verifier follows the loop once and for itself, without what comes before and after.
 */
__noinline int sluice_prove(struct sk_msg_md *msg, __u32 which, struct head *copy, struct sluice_proof *proof)
{
	const struct sluice_table *table = bpf_map_lookup_elem(&tables, &which);
	const __u8 *at = msg->data, *end = msg->data_end;
	const struct sluice_rows *all;
	__u32 state, zero = 0;

	all = bpf_map_lookup_elem(&rows, &zero);
	if (!table || !all || !copy || !proof)
		return 0;
	state = table->start;
	/* Few branches: the verifier remembers every one of them in every round, and 8,192 at the most. */
	for (__u32 i = 0; i < SLUICE_HEAD_BYTES && at + 1 <= end; i++) {
		__u8 byte = *at++;
		__u32 class = table->classes[byte] & (SLUICE_CELLS - 1);
		__u16 cell = all->cells[((table->base + state) * SLUICE_CELLS + class) & (SLUICE_MAX_ROWS * SLUICE_CELLS - 1)];

		copy->bytes[i] = byte;
		state = cell & STATE_MASK;
		if ((__u16)(cell - 1) < STATE_MASK)
			continue;
		switch (cell >> STEP_SHIFT) {
		case SLUICE_STEP_LENGTH:
			proof->length = proof->length * 10 + (byte - '0');
			break;
		case SLUICE_STEP_STATUS:
			proof->status = proof->status * 10 + (byte - '0');
			break;
		case SLUICE_STEP_NO_REPLY_BODY:
			proof->no_reply_body = 1;
			break;
		case SLUICE_STEP_ACCEPT_BARE:
			proof->bare = 1;
			/* fall through */
		case SLUICE_STEP_ACCEPT:
			proof->head = i + 1;
			return 1;
		default:
			return 0;	/* not proven */
		}
	}
	return 0;
}

/* Bring the beginning of a message into sight, which may be in pieces: as many bytes of it as a head may have. How many. */
static __always_inline __u32 look(struct sk_msg_md *msg)
{
	__u32 size = msg->size < SLUICE_HEAD_BYTES ? msg->size : SLUICE_HEAD_BYTES;

	if (msg->data + size > msg->data_end && bpf_msg_pull_data(msg, 0, size, 0))
		return 0;
	return size;
}

/* Prove the head at the beginning of a message: nonzero if it is proven. */
static __always_inline bool prove(struct sk_msg_md *msg, __u32 table, __u8 *copy, struct sluice_proof *proof)
{
	return look(msg) && sluice_prove(msg, table, (struct head *)copy, proof);
}

/* Frames: four bytes with the number of those that follow, then what the protocol says; of replies, then the number of the request.
 * A request has its number behind four other bytes.
 */
#define LENGTH_BYTES 4
#define LONGEST_FRAME 0x7fffffff	/* the length is a signed number */
#define REQUEST_NUMBER 8
#define REPLY_NUMBER 4

static __always_inline __u64 frame_bytes(const __u8 *start)
{
	return LENGTH_BYTES + (__u64)bpf_ntohl(*(const __be32 *)start);
}

/* Copy the beginning of a message: how many bytes of it, 0 if it is not even the length and a number. */
static __always_inline __u32 copy_start(struct sk_msg_md *msg, __u8 *copy)
{
	__u32 size = look(msg);

	if (size < REQUEST_NUMBER + 4 || size > SLUICE_HEAD_BYTES || msg->data + size > msg->data_end)
		return 0;
	return bpf_probe_read_kernel(copy, size, msg->data) ? 0 : size;
}

/* Whether a frame begins like one that was judged. Global, so that the verifier follows the loop by itself. */
__noinline int sluice_alike(const struct head *start, __u32 which)
{
	const struct sluice_prefix *prefix = bpf_map_lookup_elem(&prefixes, &which);
	const __u64 *words = (const __u64 *)start;

	if (!prefix || !start)
		return -1;
	for (__u32 i = 0; i < SLUICE_HEAD_BYTES / 8 && i * 8 < prefix->length; i++)
		if ((words[i] & prefix->mask[i]) != prefix->data[i])
			return 0;
	return prefix->length;
}

/* Prove the frame that a message is: its beginning is copied, and `head` says how much of it was judged. */
static __always_inline bool prove_frame(struct sk_msg_md *msg, __u32 flow, __u8 *copy, struct sluice_proof *proof)
{
	__u32 there = copy_start(msg, copy);

	for (__u32 i = 0; there && i < SLUICE_PREFIXES; i++) {
		int length = sluice_alike((const struct head *)copy, flow * SLUICE_PREFIXES + i);

		if (length < 0)
			return false;
		if (length && (__u32)length <= there) {
			proof->head = length;
			proof->length = frame_bytes(copy) - length;
			return true;
		}
	}
	return false;
}

/* The guards. */

/* A connection as a program has it in hand. */
struct path {
	__u32 index;
	bool framed;
	__u64 now;
	struct sluice_lane *lane;	/* of the sender */
	struct sluice_flow *flow;
	struct sluice_ends *ends;
	struct sluice_call *call;	/* the one that is begun, or answered */
};

/* Whether this is what is left of a message that was carried. Out of memory, the receiver's kernel may take some pieces of a message
 * and leave the others to be judged anew; whoever has sent it would have a say in what we take them for.
 */
static __always_inline bool is_rest(struct sk_msg_md *msg)
{
	const struct sk_msg *whole = (const struct sk_msg *)msg;

	return BPF_CORE_READ(whole, sg.start);
}

/* The call that is next to begin, or the oldest that is not answered. */
static __always_inline struct sluice_call *find_call(const struct path *on, bool client)
{
	__u32 number = client ? on->ends->begun : on->ends->answered;
	__u32 which = on->index * SLUICE_PIPELINE + (on->framed ? number % SLUICE_PIPELINE : 0);

	return bpf_map_lookup_elem(&calls, &which);
}

/* Who has the wheel, once the other end's program is through with it: that takes a microsecond or two, unless it is kept from
 * running. Global, as it is a long loop.
 */
__noinline int sluice_wheel_of(__u32 index)
{
	const struct sluice_flow *flow = bpf_map_lookup_elem(&flows, &index);
	__u32 wheel = SLUICE_WHEEL_BUSY;

	if (!flow)
		return SLUICE_WHEEL_OFF;
	for (int i = 0; i < SPINS && wheel == SLUICE_WHEEL_BUSY; i++)
		wheel = *(volatile const __u32 *)&flow->wheel;
	return wheel;
}

/* How many hold on to a socket's place in the map: the map, and whoever is in a system call that sends or receives. */
static __always_inline int holders(__u64 sock)
{
	const struct sock *sk = (const struct sock *)sock;
	__u64 data = (__u64)BPF_CORE_READ(sk, sk_user_data) & ~7ULL;	/* the lowest bits are flags */
	const struct sk_psock *psock = (const struct sk_psock *)data;

	return data ? BPF_CORE_READ(psock, refcnt.refs.counter) : 0;
}

/* Whether what the client had carried is in the server's queue. Between our verdict and that queue the kernel lets go of the
 * client's lock, and what another task sends meanwhile could come first. A task sends one thing after another; for others,
 * nobody but we may be in a system call on the socket.
 */
static __always_inline bool arrived(const struct sluice_lane *lane, struct sluice_ends *both)
{
	if (both->sender && both->sender != bpf_get_current_pid_tgid() && holders(lane->sock) != 2)
		return fall_back(SLUICE_FB_SENDERS);
	both->sender = 0;
	return true;
}

/* Whether every byte that this socket has sent by TCP went through the relay to its end. */
static __always_inline bool settled(const struct sluice_lane *lane, __u32 read)
{
	const struct tcp_sock *tcp = (const struct tcp_sock *)lane->sock;
	__u32 written = BPF_CORE_READ(tcp, write_seq);

	return written - lane->sent == read || fall_back(SLUICE_FB_LEDGER);
}

/* How many bytes wait in the queue of a socket that is in the map, or -1 if it takes none: it is gone, its connection is over, or
 * it is another one. The address may be that of a socket that is gone: its memory is never anything but a socket's, and the
 * cookie tells. The cookie stays when a socket connects again, the numbers of its bytes do not; nothing comes over TCP but the
 * end, so they are still those of the beginning.
 */
static __always_inline int queued(__u64 sock, __u64 cookie, __u32 first)
{
	const struct tcp_sock *tcp = (const struct tcp_sock *)sock;
	unsigned char state;
	int waiting;

	if (!sock || (__u64)BPF_CORE_READ(tcp, inet_conn.icsk_inet.sk.__sk_common.skc_cookie.counter) != cookie ||
	    BPF_CORE_READ(tcp, rcv_nxt) != first)
		return -1;
	state = BPF_CORE_READ(tcp, inet_conn.icsk_inet.sk.__sk_common.skc_state);
	/* SYN_RECV for a moment, while its handshake is being completed; then the application may end its own side. */
	if (state != TCP_ESTABLISHED && state != TCP_SYN_RECV && state != TCP_FIN_WAIT1 && state != TCP_FIN_WAIT2)
		return -1;
	waiting = BPF_CORE_READ(tcp, inet_conn.icsk_inet.sk.sk_backlog.rmem_alloc.counter);
	return waiting < 0 ? 0 : waiting;
}

/* Whether a message may be carried into a socket's queue. */
static __always_inline bool ready(__u64 sock, __u64 cookie, __u32 first)
{
	const struct sock *sk = (const struct sock *)sock;
	int waiting = queued(sock, cookie, first);

	/* What ends from one side is the relay's to end from the other. */
	if (waiting < 0 || BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_ESTABLISHED)
		return fall_back(SLUICE_FB_GONE);
	return waiting < SLUICE_QUEUE_BYTES || fall_back(SLUICE_FB_MEMORY);
}

/* Whether the agent lives and the policy that it armed the flow under is in force. */
static __always_inline bool current(const struct sluice_flow *flow, __u64 now)
{
	struct sluice_control *control_now;
	__u32 zero = 0;

	control_now = bpf_map_lookup_elem(&control, &zero);
	return (control_now && control_now->generation == flow->generation &&
		(__s64)(now - control_now->heartbeat_ns) < (__s64)config.heartbeat_limit_ns) ||
	       fall_back(SLUICE_FB_STALE);
}

/* Send the whole message into the queue of another socket: the last step, as a message that has been pointed somewhere goes
 * there whatever the program returns. A redirect that finds no socket must become a pass.
 */
static __always_inline bool redirect(struct sk_msg_md *msg, __u64 cookie)
{
	return bpf_msg_redirect_hash(msg, &sockets, &cookie, BPF_F_INGRESS) == SK_PASS;
}

static __always_inline bool carry(struct sk_msg_md *msg, __u64 cookie)
{
	return redirect(msg, cookie) || fall_back(SLUICE_FB_GONE);
}

/* What a message does to the flow: who has the wheel behind it, or OFF if it must go to the relay. */

/* A request is carried when one message is all of it. */
static __always_inline __u32 request(struct sk_msg_md *msg, const struct path *on, __u32 wheel)
{
	struct sluice_call *call = on->call;
	struct sluice_proof proof = {};
	bool proven;

	proven = on->framed ? prove_frame(msg, on->index, call->head, &proof) : prove(msg, on->flow->table, call->head, &proof);
	if (!proven || msg->size != proof.head + proof.length) {
		fall_back(SLUICE_FB_REQUEST);
		return SLUICE_WHEEL_OFF;
	}
	/* The automaton's rows are written anew only after the policy has changed: were they ours all the time? */
	if (!current(on->flow, on->now) || !carry(msg, on->ends->server))
		return SLUICE_WHEEL_OFF;
	call->began_ns = on->now;
	call->request_bytes = msg->size;
	call->reply_bytes = call->reply_left = 0;
	call->flow = on->index;
	call->generation = on->flow->generation;
	call->client = on->flow->client;
	call->number = on->flow->first + on->ends->begun;
	call->head_length = proof.head;
	call->reply_head_length = 0;
	call->status = 0;
	call->no_reply_body = proof.no_reply_body;
	on->ends->begun++;
	return wheel == SLUICE_WHEEL_IDLE ? SLUICE_WHEEL_WAIT : wheel;
}

/* How much of a call its record is: of frames, the reply's beginning is looked at as well. */
static __always_inline __u32 record_bytes(const struct path *on)
{
	return offsetof(struct sluice_call, head) + on->call->head_length + (on->framed ? on->call->reply_head_length : 0);
}

/* The record of a finished call. Where it finds no room although there was some, the call stays open with nothing left of it:
 * whatever comes next goes to the relay, which takes the call over and writes its record.
 */
static __always_inline __u32 finish(const struct path *on, void *ring)
{
	__u32 length = record_bytes(on);

	if (length > sizeof(struct sluice_call))
		length = sizeof(struct sluice_call);
	on->call->ended_ns = on->now;
	if (bpf_ringbuf_output(ring, on->call, length, 0)) {
		fall_back(SLUICE_FB_RECORDS);
		return SLUICE_WHEEL_REPLY;
	}
	on->ends->answered++;
	return on->ends->begun == on->ends->answered ? SLUICE_WHEEL_IDLE : SLUICE_WHEEL_WAIT;
}

static __always_inline __u32 go_on_with_reply(struct sk_msg_md *msg, const struct path *on, __u64 left)
{
	__u32 size = msg->size, worker = on->flow->worker;
	void *ring;

	if (size > left) {
		fall_back(SLUICE_FB_OVERRUN);
		return SLUICE_WHEEL_OFF;
	}
	/* Room for the record before the last bytes of the reply: where there is none, the relay takes the call over. */
	ring = bpf_map_lookup_elem(&rings, &worker);
	if (size == left && (!ring || bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) + record_bytes(on) + 16 >
					 bpf_ringbuf_query(ring, BPF_RB_RING_SIZE))) {
		fall_back(SLUICE_FB_RECORDS);
		return SLUICE_WHEEL_OFF;
	}
	if (!carry(msg, on->flow->client))
		return SLUICE_WHEEL_OFF;
	on->call->reply_bytes += size;
	on->call->reply_left = left - size;
	return size == left && ring ? finish(on, ring) : SLUICE_WHEEL_REPLY;
}

/* The head of a reply: the bytes of the whole, or 0 if it is for the relay. */
static __always_inline __u64 reply_head(struct sk_msg_md *msg, struct sluice_call *call)
{
	struct sluice_proof proof = {};

	if (!prove(msg, SLUICE_REPLY_TABLE, call->reply_head, &proof))
		return 0;
	if (call->no_reply_body || proof.no_reply_body)
		proof.length = 0;
	else if (proof.bare)	/* it lasts until the server closes */
		return 0;
	call->status = proof.status;
	call->reply_head_length = proof.head;
	return proof.head + proof.length;
}

/* The same of a frame. It must answer the oldest call, and what its record tells of it must be there: a short one as a whole. Its
 * beginning is kept right behind the request's.
 */
static __always_inline __u64 reply_frame(struct sk_msg_md *msg, struct sluice_call *call)
{
	__u32 head = call->head_length, there;
	__u8 *copy = call->head + head;
	__u64 whole;

	if (head > SLUICE_HEAD_BYTES)
		return 0;
	there = copy_start(msg, copy);
	whole = frame_bytes(copy);
	if (!there || whole > LONGEST_FRAME || *(__u32 *)(copy + REPLY_NUMBER) != *(__u32 *)(call->head + REQUEST_NUMBER))
		return 0;
	if (msg->size != whole && (whole <= SLUICE_HEAD_BYTES || there < SLUICE_FRAME_START))
		return 0;
	call->reply_head_length = there;
	return whole;
}

static __always_inline __u32 begin_reply(struct sk_msg_md *msg, const struct path *on)
{
	struct sluice_call *call = on->call;
	__u64 whole = on->framed ? reply_frame(msg, call) : reply_head(msg, call);
	__u32 next = SLUICE_WHEEL_OFF;

	if (whole)
		next = go_on_with_reply(msg, on, whole);
	else
		fall_back(SLUICE_FB_REPLY);
	if (next == SLUICE_WHEEL_OFF)	/* the agent must not take it for carried */
		call->status = call->reply_head_length = 0;
	return next;
}

static __always_inline __u32 from_client(struct sk_msg_md *msg, const struct path *on, __u32 wheel)
{
	if (on->ends->torn)
		return SLUICE_WHEEL_OFF;
	if (on->ends->begun - on->ends->answered >= SLUICE_PIPELINE) {
		fall_back(SLUICE_FB_PIPELINE);
		return SLUICE_WHEEL_OFF;
	}
	if (!current(on->flow, on->now) || !settled(on->lane, on->flow->down_read) ||
	    !ready(on->ends->server_sock, on->ends->server, on->ends->server_received))
		return SLUICE_WHEEL_OFF;
	return request(msg, on, wheel);
}

static __always_inline __u32 from_server(struct sk_msg_md *msg, const struct path *on, __u32 wheel)
{
	if (on->ends->torn || !settled(on->lane, on->flow->up_read) ||
	    !ready(on->ends->client_sock, on->flow->client, on->ends->client_received))
		return SLUICE_WHEEL_OFF;
	if (*(volatile __u32 *)&on->flow->owed) {
		fall_back(SLUICE_FB_OWED);
		return SLUICE_WHEEL_OFF;
	}
	return wheel == SLUICE_WHEEL_WAIT ? begin_reply(msg, on) : go_on_with_reply(msg, on, on->call->reply_left);
}

/* Whose turn it is: a client's between calls, a server's when it has a request. Requests that are frames may come at any time. */
static __always_inline bool has_turn(const struct path *on, bool client, __u32 wheel)
{
	bool open = wheel == SLUICE_WHEEL_WAIT || wheel == SLUICE_WHEEL_REPLY;

	if (client ? wheel == SLUICE_WHEEL_IDLE || (open && on->framed) : open)
		return true;
	return fall_back(wheel == SLUICE_WHEEL_OFF ? SLUICE_FB_OFF : wheel == SLUICE_WHEEL_BUSY ? SLUICE_FB_BUSY : SLUICE_FB_EARLY);
}

/* Take the wheel for a moment; `before` is who had it. The other end's program may take it, too, while we look. */
static __always_inline bool take(const struct path *on, bool client, __u32 *before)
{
	for (int i = 0; i < TRIES; i++) {
		__u32 wheel = sluice_wheel_of(on->index);

		if (!has_turn(on, client, wheel))
			return false;
		if (__sync_val_compare_and_swap(&on->flow->wheel, wheel, SLUICE_WHEEL_BUSY) == wheel) {
			*before = wheel;
			return true;
		}
	}
	return fall_back(SLUICE_FB_BUSY);
}

/* The flow of a socket. The agent names a client's by its cookie, when it lets go of the wheel for the first time. */
static __always_inline bool find(struct sluice_lane *lane, bool client, struct path *on)
{
	__u32 *found;

	on->lane = lane;
	on->index = lane->flow;
	on->flow = bpf_map_lookup_elem(&flows, &on->index);
	if (client && (!on->index || !on->flow || on->flow->client != lane->cookie)) {
		found = bpf_map_lookup_elem(&callers, &lane->cookie);
		if (!found)
			return false;
		on->index = lane->flow = *found;
		on->flow = bpf_map_lookup_elem(&flows, &on->index);
	}
	on->ends = bpf_map_lookup_elem(&ends, &on->index);
	if (!on->flow || !on->ends || (client ? on->flow->client : on->ends->server) != lane->cookie)
		return false;
	on->framed = on->flow->table == SLUICE_FRAMES;
	if (client) {
		on->ends->client_sock = lane->sock;
		on->ends->client_received = lane->received;
	}
	return true;
}

/* Put what a worker sends into the queue that it has named. What finds nobody there goes its TCP way, to the injector's other end,
 * and is counted. A message that is taken in part, out of memory, is continued: what is left of it is for the same receiver.
 */
static __always_inline void inject(struct sk_msg_md *msg, __u32 worker)
{
	struct sluice_injection *to = bpf_map_lookup_elem(&injections, &worker);
	int waiting;

	if (!to)
		return;
	waiting = queued(to->sock, to->cookie, to->first);
	if (waiting < 0 || !redirect(msg, to->cookie))
		to->strayed += msg->size;
	else
		to->waiting = waiting + msg->size;
}

SEC("sk_msg")
int sluice_message(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct sluice_lane *lane;
	struct path on = {};
	__u32 wheel = SLUICE_WHEEL_OFF, next;
	bool client;

	lane = sk ? bpf_sk_storage_get(&lanes, sk, 0, 0) : NULL;
	if (!lane)
		return SK_PASS;
	if (lane->role == SLUICE_ROLE_INJECTOR) {
		inject(msg, lane->flow);
		return SK_PASS;
	}
	client = lane->role == SLUICE_ROLE_CLIENT;
	if (!find(lane, client, &on))
		return SK_PASS;
	if (is_rest(msg)) {
		on.ends->torn = 1;
		fall_back(SLUICE_FB_TORN);
		return SK_PASS;
	}
	if ((client && !arrived(lane, on.ends)) || !take(&on, client, &wheel))
		return SK_PASS;
	on.now = bpf_ktime_get_ns();
	on.call = find_call(&on, client);
	/* Now that nobody can take the wheel: is it still ours? The agent may have given the flow's number to another connection
	 * since we have looked.
	 */
	if (!on.call || (client ? on.flow->client : on.ends->server) != lane->cookie)
		next = SLUICE_WHEEL_OFF;
	else if (client)
		next = from_client(msg, &on, wheel);
	else
		next = from_server(msg, &on, wheel);
	if (next != SLUICE_WHEEL_OFF) {
		on.ends->carried_ns = on.now;
		if (client)
			on.ends->sender = bpf_get_current_pid_tgid();
		else
			on.ends->replying = 1;
	}
	/* What was not carried changes nothing: the agent sees the bytes, and takes the wheel with what there is of a call. */
	__sync_val_compare_and_swap(&on.flow->wheel, SLUICE_WHEEL_BUSY, next != SLUICE_WHEEL_OFF ? next : wheel);
	return SK_PASS;
}

/* Whether nobody is in a system call on a socket: it is gone, or held by nothing but the map. */
static __always_inline bool is_quiet(__u64 sock, __u64 cookie)
{
	const struct sock *sk = (const struct sock *)sock;

	return (__u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) != cookie || holders(sock) <= 1;
}

/* Take the wheel for the agent: who had it before, or BUSY to ask again. While `sender` or `replying` is set in `ends`, bytes
 * that have been carried may still be on their way, and the agent must not write to that end: it asks again.
 */
SEC("syscall")
int sluice_take(struct sluice_take *which)
{
	__u32 index = which->flow, wheel = SLUICE_WHEEL_BUSY;
	struct sluice_flow *flow = bpf_map_lookup_elem(&flows, &index);
	struct sluice_ends *both = bpf_map_lookup_elem(&ends, &index);

	if (!flow || !both)
		return SLUICE_WHEEL_OFF;
	for (int i = 0; i < 4 && wheel == SLUICE_WHEEL_BUSY; i++) {
		wheel = *(volatile __u32 *)&flow->wheel;
		if (wheel != SLUICE_WHEEL_BUSY && __sync_val_compare_and_swap(&flow->wheel, wheel, SLUICE_WHEEL_OFF) != wheel)
			wheel = SLUICE_WHEEL_BUSY;
	}
	if (wheel == SLUICE_WHEEL_BUSY)
		return wheel;
	/* Nothing can be carried any more. */
	if (both->sender && is_quiet(both->client_sock, flow->client))
		both->sender = 0;
	if (both->replying && is_quiet(both->server_sock, both->server))
		both->replying = 0;
	return wheel;
}

/* How much waits for the reader of an application's socket; a negative number if it takes nothing any more. */
SEC("syscall")
int sluice_queued(struct sluice_queue *which)
{
	__u64 sock = which->sock;

	return holders(sock) ? queued(sock, which->cookie, which->first) : -1;
}

/* How the relay's bytes are to get to a flow's server: from now on, if it has not been seen, by TCP. OPEN: ask again. */
SEC("syscall")
int sluice_reach(struct sluice_take *which)
{
	__u32 index = which->flow;
	struct sluice_ends *both = bpf_map_lookup_elem(&ends, &index);
	__u32 access;

	if (!both)
		return SLUICE_ACCESS_TCP;
	access = __sync_val_compare_and_swap(&both->access, SLUICE_ACCESS_OPEN, SLUICE_ACCESS_TCP);
	if (access == SLUICE_ACCESS_MAP)
		return *(volatile __u64 *)&both->server ? access : SLUICE_ACCESS_OPEN;
	return SLUICE_ACCESS_TCP;
}

/* Enums reach BTF, and with it bpf/abi.py, only where a type mentions them. */
struct sluice_path_enums {
	enum sluice_wheel wheel;
	enum sluice_role role;
	enum sluice_access access;
	enum sluice_step step;
	enum sluice_fallback fallback;
	enum sluice_framing framing;
	enum sluice_path_limit limit;
} sluice_path_enums SEC(".data.abi");

char _license[] SEC("license") = "Dual BSD/GPL";
