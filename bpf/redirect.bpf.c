// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* redirect.bpf.c: which connections go to the agent.
 *
 *   connect4/6, sendmsg4/6   who calls, whom, may they: native, refused or redirected
 *   recvmsg4/6               who wrote to a UDP socket from elsewhere, and so may be answered
 *   egress                   datagrams, as they leave (datagrams.bpf.h)
 *   sock_create              no sockets of protocols that the other hooks do not see, for those who may not speak freely
 *   sock_ops                 tells the agent what the connections that it accepts really asked for (handover.bpf.h)
 *   ingress                  a SYN that nobody has judged reaches no policed listener (arrive.bpf.h)
 *   getpeername4/6           lets the application go on seeing the peer that it asked for
 *
 * Doubt is a refusal. The hooks outlive a killed agent (see proxy/guard.py); a stale heartbeat then refuses what is policed.
 */
#include "identity.bpf.h"
#include "outcome.bpf.h"
#include "arrive.bpf.h"
#include "datagrams.bpf.h"
#include "handover.bpf.h"

#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define EPERM 1
#define EAGAIN 11
#define EPROTONOSUPPORT 93
#define ECONNREFUSED 111

#define POINT 2	/* allow, after pointing the socket at the agent (never seen by the kernel) */

static __always_inline int refuse(__u32 event, int error)
{
	count(event);
	bpf_set_retval(-error);
	return DENY;
}

static __always_inline bool is_mapped(const __u32 *ip6)
{
	return !ip6[0] && !ip6[1] && ip6[2] == bpf_htonl(0xffff);
}

/* ::1 or 127.0.0.0/8, which is another host in every namespace. */
static __always_inline bool is_loopback(const struct destination *to)
{
	__u32 ip[4];

	__builtin_memcpy(ip, to->addr, 16);
	return to->v4 ? to->addr[12] == 127 : !ip[0] && !ip[1] && !ip[2] && ip[3] == bpf_htonl(1);
}

static __always_inline bool is_zero(const volatile __u8 *addr)
{
	__u8 any = 0;

	for (int i = 0; i < 16; i++)
		any |= addr[i];
	return !any;
}

/* A socket bound to a network card does not reach loopback. Only CAP_NET_RAW may loosen it, with the caller's rights. */
static __always_inline bool reaches_loopback(struct bpf_sock_addr *ctx)
{
	char none[4] = "";

	return socket_of(ctx)->bound_dev_if <= LOOPBACK_IFINDEX ||
	       !bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none));
}

/* Where the agent can be reached from the caller's namespace: loopback in its own, a gateway address from others. */
static __always_inline bool agent_address(struct bpf_sock_addr *ctx, const struct destination *to, __u8 *addr)
{
	const volatile __u8 *gateway = to->v4 ? config.gateway4 : config.gateway6;

	if (bpf_get_netns_cookie(ctx) == config.agent_netns) {
		__builtin_memset(addr, 0, 16);
		if (to->v4)
			map_v4(addr, bpf_htonl(0x7f000001));
		else
			addr[15] = 1;
		return !(config.no_ipv6 && !to->v4) && reaches_loopback(ctx);
	}
	if (is_zero(gateway) || is_loopback(to))
		return false;
	for (int i = 0; i < 16; i++)
		addr[i] = gateway[i];
	return true;
}

/* Remember what was asked for; `addr` is where the socket is to be pointed instead. */
static __always_inline int redirect(struct bpf_sock_addr *ctx, const struct destination *to, struct sluice_origin *origin,
				    __u8 *addr)
{
	struct sluice_origin *kept;

	if (!agent_address(ctx, to, addr))
		return refuse(SLUICE_EV_NO_GATEWAY, ECONNREFUSED);
	if (is_rootless(address_of(socket_of(ctx))))
		return refuse(SLUICE_EV_ROOTLESS, ECONNREFUSED);
	if (is_crowded(origin->subject))
		return refuse(SLUICE_EV_CROWDED, EAGAIN);
	__builtin_memcpy(origin->addr, to->addr, 16);
	origin->cookie = bpf_get_socket_cookie(ctx);
	kept = bpf_sk_storage_get(&origins, socket_of(ctx), origin, BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept)
		return refuse(SLUICE_EV_NO_ROOM, EAGAIN);
	*kept = *origin;	/* a socket may connect again */
	count(SLUICE_EV_REDIRECTED);
	return POINT;
}

/* Whether a datagram that is not allowed may go all the same: to whoever wrote to this socket. */
static __always_inline bool is_answer(struct bpf_sock_addr *ctx, const struct destination *to, __u32 whom, __u32 generation,
				      bool leaves)
{
	struct bpf_sock *own = socket_of(ctx);
	struct hearer hearer = {};
	struct sluice_address *class;
	struct end from;

	if (to->transport != IPPROTO_UDP)
		return false;
	class = class_of(to, generation);
	if (!class || !(class->flags & SLUICE_ADDRESS_LOCAL))
		return class && has_written(bpf_get_socket_cookie(ctx), to, whom);
	if (leaves)	/* who hears it depends on its source, which is not chosen yet: it is judged as it leaves */
		return true;
	/* Both are on this host. Mostly the source will be the same address. */
	__builtin_memcpy(from.addr, to->addr, 16);
	from.port = bpf_htons(own->src_port);
	return look_up_hearer(ctx, to, &from, address_of(own), from.port, &hearer) && hearer.asked;
}

/* Let a socket go its own way. A SYN of it is judged once more where it arrives, a datagram as it leaves, for the same subject:
 * whose the socket's cgroup is, unless somebody else has called connect().
 */
static __always_inline int pass(struct bpf_sock_addr *ctx, const struct destination *to, const struct sluice_origin *origin,
				__u32 event)
{
	struct bpf_sock *sk = socket_of(ctx);
	__u32 *kept, subject;

	bpf_sk_storage_delete(&origins, sk);
	if (to->transport != IPPROTO_TCP) {
		if (!keep_sender(sk, origin))
			return refuse(SLUICE_EV_NO_ROOM, EAGAIN);
	} else if (cgroup_of(address_of(sk)) == origin->cgroup) {
		bpf_sk_storage_delete(&natives, sk);
	} else {
		subject = origin->subject;
		kept = bpf_sk_storage_get(&natives, sk, &subject, BPF_SK_STORAGE_GET_F_CREATE);
		if (!kept)
			return refuse(SLUICE_EV_NO_ROOM, EAGAIN);
		*kept = subject;	/* a socket may connect again */
	}
	count(event);
	return ALLOW;
}

/* Nobody listens. Where somebody might whom the subject may not reach past the agent, say at once what the kernel is about to
 * say: whoever comes up meanwhile would drop the SYN, and its sender would wait for long.
 */
__noinline bool sluice_stays_closed(__u32 generation, __u32 subject, __u32 port)
{
	struct destination to = {.port = port, .transport = IPPROTO_TCP};
	struct sluice_control *now;
	__be16 key = port;
	__u32 zero = 0;

	now = bpf_map_lookup_elem(&control, &zero);
	return now && !(now->flags & SLUICE_CONTROL_TRANSLATED) && !bpf_map_lookup_elem(&device_ports, &key) &&
	       action_of(rule(generation, subject, SLUICE_UNRESOLVED, &to), subject) != SLUICE_NATIVE;
}

/* `leaves`: a datagram is on its way, and will be judged as it leaves; otherwise a connect(), after which one may be. */
static __always_inline int judge(struct bpf_sock_addr *ctx, const struct destination *to, __u8 *addr, bool leaves)
{
	struct sluice_origin origin = {.port = to->port, .v4 = to->v4};
	struct caller who = {};
	struct sluice_control *now;
	struct sluice_rule *found;
	__u32 zero = 0, action, flags;
	bool closed = false;

	now = bpf_map_lookup_elem(&control, &zero);
	if (!now)
		return DENY;
	origin.generation = now->generation;
	sluice_identify(&who);
	origin.cgroup = who.cgroup;
	origin.subject = who.subject;
	origin.flags = who.accelerated ? SLUICE_ORIGIN_ACCELERATE : 0;
	if (who.subject == SLUICE_AGENT) {
		/* Tell the agent whom it has really reached, before it sends a byte. */
		origin.peer = peer(ctx, to, origin.generation, &closed);
		__builtin_memcpy(origin.addr, to->addr, 16);
		bpf_sk_storage_get(&origins, socket_of(ctx), &origin, BPF_SK_STORAGE_GET_F_CREATE);
		return ALLOW;
	}
	if (!origin.generation)	/* before the first policy is in: not attached to anyone yet */
		return ALLOW;
	if (who.unsettled)
		return refuse(SLUICE_EV_UNSETTLED, EAGAIN);
	origin.peer = peer(ctx, to, origin.generation, &closed);
	if (origin.peer == SLUICE_ANY)
		return refuse(SLUICE_EV_UNSETTLED, EAGAIN);
	found = rule(origin.generation, origin.subject, origin.peer, to);
	/* Held up for so long that our generation is gone: its entries are no answer any more, and no entry would mean native. */
	if (!found && *(volatile __u32 *)&now->generation != origin.generation)
		return refuse(SLUICE_EV_UNSETTLED, EAGAIN);
	action = action_of(found, origin.subject);
	flags = found ? found->flags : 0;
	if (action == SLUICE_NATIVE && to->transport == IPPROTO_UDP && is_group(to)) {
		__u32 hearer = listener(ctx, to, &closed);

		if (is_workload(hearer) && hearer != origin.subject) {
			found = rule(origin.generation, origin.subject, hearer, to);
			action = found ? found->action : action;
		}
	}

	if (closed && action != SLUICE_REFUSE && to->transport == IPPROTO_TCP &&
	    sluice_stays_closed(origin.generation, origin.subject, to->port))
		return refuse(SLUICE_EV_CLOSED, ECONNREFUSED);
	if (action == SLUICE_NATIVE || is_answer(ctx, to, origin.peer, origin.generation, leaves))
		return pass(ctx, to, &origin, SLUICE_EV_NATIVE);
	if (action == SLUICE_REDIRECT && !beats(now)) {
		if (!(flags & SLUICE_RULE_FAIL_OPEN))
			return refuse(SLUICE_EV_STALE_REFUSED, ECONNREFUSED);
		return pass(ctx, to, &origin, SLUICE_EV_STALE_OPEN);
	}
	if (action != SLUICE_REDIRECT || to->transport != IPPROTO_TCP)
		return refuse(SLUICE_EV_REFUSED, EPERM);
	if (!(flags & SLUICE_RULE_CARRIED))
		origin.flags &= ~SLUICE_ORIGIN_ACCELERATE;
	return redirect(ctx, to, &origin, addr);
}

/* Everything that is not UDP is judged as TCP: what cannot be redirected is refused by the kernel's own connect. */
static __always_inline __u8 transport(const struct bpf_sock_addr *ctx)
{
	return ctx->type == SOCK_DGRAM ? IPPROTO_UDP : IPPROTO_TCP;
}

/* To Linux the address zero is the socket's own source address, or loopback. */
static __always_inline void name_zero4(struct destination *to, __be32 source)
{
	map_v4(to->addr, source ? source : bpf_htonl(0x7f000001));
}

static __always_inline int judge4(struct bpf_sock_addr *ctx, __be32 source, bool leaves)
{
	struct destination to = {.port = ctx->user_port, .transport = transport(ctx), .v4 = true};
	__u8 addr[16];
	__be32 ip = ctx->user_ip4;
	int verdict;

	if (ip)
		map_v4(to.addr, ip);
	else
		name_zero4(&to, source);
	verdict = judge(ctx, &to, addr, leaves);
	if (verdict == POINT) {
		__builtin_memcpy(&ip, addr + 12, 4);
		ctx->user_ip4 = ip;
		ctx->user_port = config.agent_port;
		return ALLOW;
	}
	if (verdict == ALLOW && !ip) {
		/* What was judged is what is routed, whatever network card has been chosen. */
		__builtin_memcpy(&ip, to.addr + 12, 4);
		ctx->user_ip4 = ip;
	}
	return verdict;
}

static __always_inline int judge6(struct bpf_sock_addr *ctx, __be32 source4, bool leaves)
{
	__u32 ip[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};
	struct destination to = {.port = ctx->user_port, .transport = transport(ctx), .v4 = is_mapped(ip)};
	__u8 addr[16];
	int verdict;

	__builtin_memcpy(to.addr, ip, 16);
	if (to.v4 && !ip[3]) {
		name_zero4(&to, source4);
	} else if (is_zero(to.addr)) {
		to.v4 = source4;	/* bound to an IPv4 address: it stays in that family */
		if (to.v4)
			name_zero4(&to, 0);
		else
			to.addr[15] = 1;
	}
	verdict = judge(ctx, &to, addr, leaves);
	if (verdict != POINT)
		return verdict;
	__builtin_memcpy(ip, addr, 16);
	ctx->user_ip6[0] = ip[0];
	ctx->user_ip6[1] = ip[1];
	ctx->user_ip6[2] = ip[2];
	ctx->user_ip6[3] = ip[3];
	ctx->user_port = config.agent_port;
	return ALLOW;
}

SEC("cgroup/connect4")
int sluice_connect4(struct bpf_sock_addr *ctx)
{
	return judge4(ctx, ctx->sk->src_ip4, false);
}

SEC("cgroup/connect6")
int sluice_connect6(struct bpf_sock_addr *ctx)
{
	return judge6(ctx, ctx->sk->src_ip4, false);
}

SEC("cgroup/sendmsg4")
int sluice_sendmsg4(struct bpf_sock_addr *ctx)
{
	return judge4(ctx, ctx->msg_src_ip4, true);
}

SEC("cgroup/sendmsg6")
int sluice_sendmsg6(struct bpf_sock_addr *ctx)
{
	return judge6(ctx, ctx->sk->src_ip4, true);
}

/* Of who wrote from this host it is kept with the sockets themselves (datagrams.bpf.h). */
static __always_inline void note_writer(struct bpf_sock_addr *ctx, struct destination *from)
{
	struct sluice_writer key = {.port = ctx->user_port, .cookie = bpf_get_socket_cookie(ctx)};
	struct sluice_control *now;
	struct sluice_address *class;
	__u32 zero = 0, *known;

	now = bpf_map_lookup_elem(&control, &zero);
	class = now ? class_of(from, now->generation) : NULL;
	if (!class || class->flags & SLUICE_ADDRESS_LOCAL)
		return;
	__builtin_memcpy(key.addr, from->addr, 16);
	known = bpf_map_lookup_elem(&writers, &key);	/* also keeps it from being the least recently used */
	if (!known || *known != class->identity)
		bpf_map_update_elem(&writers, &key, &class->identity, BPF_ANY);
}

SEC("cgroup/recvmsg4")
int sluice_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct destination from = {.v4 = true};

	map_v4(from.addr, ctx->user_ip4);
	note_writer(ctx, &from);
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int sluice_recvmsg6(struct bpf_sock_addr *ctx)
{
	__u32 ip[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};
	struct destination from = {};

	__builtin_memcpy(from.addr, ip, 16);
	note_writer(ctx, &from);
	return ALLOW;
}

/* UDP-Lite, SCTP, raw IP and the later subflows of MPTCP never come by the hooks above. Whoever may not speak TCP to just
 * anyone may not have such a socket. The error makes those who try MPTCP first fall back to TCP.
 */
SEC("cgroup/sock_create")
int sluice_sock_create(struct bpf_sock *ctx)
{
	struct destination to = {.transport = IPPROTO_TCP};
	struct sluice_control *now;
	struct sluice_rule *found;
	struct caller who = {};
	__u32 zero = 0;

	if ((ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP) || (ctx->type == SOCK_DGRAM && ctx->protocol == IPPROTO_UDP))
		return ALLOW;
	now = bpf_map_lookup_elem(&control, &zero);
	sluice_identify(&who);
	if (!now || !now->generation || who.subject == SLUICE_AGENT)
		return ALLOW;
	if (who.unsettled)
		return refuse(SLUICE_EV_UNSETTLED, EAGAIN);
	found = rule(now->generation, who.subject, SLUICE_ANY, &to);
	if (found ? found->action == SLUICE_NATIVE : who.subject == SLUICE_HOST)
		return ALLOW;
	return refuse(SLUICE_EV_REFUSED, EPROTONOSUPPORT);
}

SEC("cgroup_skb/ingress")
int sluice_ingress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk || (sk->state != BPF_TCP_LISTEN && skb->ifindex != LOOPBACK_IFINDEX && skb->pkt_type != PACKET_LOOPBACK))
		return ALLOW;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return ALLOW;
	if (sk->protocol == IPPROTO_UDP)
		return judge_hearing(skb, sk);
	return sk->protocol == IPPROTO_TCP && sk->state == BPF_TCP_LISTEN ? judge_syn(skb, sk) : ALLOW;
}

SEC("cgroup_skb/egress")
int sluice_egress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	return sk && sk->protocol == IPPROTO_UDP ? judge_departure(skb, sk) : ALLOW;
}

SEC("cgroup/getpeername4")
int sluice_getpeername4(struct bpf_sock_addr *ctx)
{
	struct sluice_origin *origin = bpf_sk_storage_get(&origins, ctx->sk, 0, 0);

	if (origin) {
		__be32 ip;

		__builtin_memcpy(&ip, origin->addr + 12, 4);
		ctx->user_ip4 = ip;
		ctx->user_port = origin->port;
	}
	return ALLOW;
}

SEC("cgroup/getpeername6")
int sluice_getpeername6(struct bpf_sock_addr *ctx)
{
	struct sluice_origin *origin = bpf_sk_storage_get(&origins, ctx->sk, 0, 0);

	if (origin) {
		__u32 ip[4];

		__builtin_memcpy(ip, origin->addr, 16);
		ctx->user_ip6[0] = ip[0];
		ctx->user_ip6[1] = ip[1];
		ctx->user_ip6[2] = ip[2];
		ctx->user_ip6[3] = ip[3];
		ctx->user_port = origin->port;
	}
	return ALLOW;
}

SEC("sockops")
int sluice_sock_ops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return ALLOW;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		if (sk->bound_dev_if)
			note_device_port(bpf_htons(ctx->local_port));
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_syn(ctx, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		on_state(ctx, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		on_accept(ctx, sk);
		break;
	}
	return ALLOW;
}

/* Enums reach BTF, and with it bpf/abi.py, only where a type mentions them. */
struct sluice_enums {
	enum sluice_action action;
	enum sluice_identity identity;
	enum sluice_event event;
	enum sluice_limit limit;
	enum sluice_flag flag;
} sluice_enums SEC(".data.abi");

char _license[] SEC("license") = "Dual BSD/GPL";
