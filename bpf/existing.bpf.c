// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* existing.bpf.c: connections that are there already, and that connect() therefore does not judge.
 *
 *   survey   tells the agent every TCP socket of its network namespace: both ends, and whose it is
 *   destroy  ends those that the agent has named
 *
 * An object of its own: Linux has bpf_sock_destroy since 6.5.
 */
#include "identity.bpf.h"
#include "natives.bpf.h"

#define AF_INET6 10

struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

extern int bpf_sock_destroy(struct sock_common *sock) __ksym;

/* Cookies of the sockets that are to be ended. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLUICE_MAX_DOOMED);
	__type(key, __u64);
	__type(value, __u8);
} doomed SEC(".maps");

/* Sockets in TIME_WAIT, and those that are not accepted yet, are others than full sockets, and hold nothing. */
static __always_inline bool is_full(const struct sock_common *sk)
{
	return sk->skc_state != BPF_TCP_TIME_WAIT && sk->skc_state != BPF_TCP_NEW_SYN_RECV;
}

SEC("iter/tcp")
int sluice_survey(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	struct sluice_socket told = {};
	__u32 *subject;
	__u64 sock;

	if (!sk || !is_full(sk))
		return 0;
	if (sk->skc_family == AF_INET6) {
		__builtin_memcpy(told.local, sk->skc_v6_rcv_saddr.bytes, 16);
		__builtin_memcpy(told.remote, sk->skc_v6_daddr.bytes, 16);
	} else {
		map_v4(told.local, sk->skc_rcv_saddr);
		map_v4(told.remote, sk->skc_daddr);
	}
	told.local_port = bpf_htons(sk->skc_num);
	told.remote_port = sk->skc_dport;
	told.state = sk->skc_state;
	told.cookie = bpf_get_socket_cookie(sk);
	bpf_probe_read_kernel(&sock, sizeof(sock), &sk);
	told.owner = sluice_owner(sock);
	subject = bpf_sk_storage_get(&natives, sk, 0, 0);
	told.caller = subject != NULL;
	if (told.state == BPF_TCP_LISTEN && sk->skc_bound_dev_if)
		note_device_port(told.local_port);
	told.subject = subject ? *subject : told.owner;
	bpf_seq_write(ctx->meta->seq, &told, sizeof(told));
	return 0;
}

SEC("iter/tcp")
int sluice_destroy(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	__u64 cookie;

	if (!sk || !is_full(sk))
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	if (bpf_map_lookup_elem(&doomed, &cookie))
		bpf_sock_destroy(sk);
	return 0;
}

/* Structures reach BTF, and with it bpf/abi.py, only where a variable has their type. */
struct sluice_socket sluice_socket SEC(".data.abi");

char _license[] SEC("license") = "Dual BSD/GPL";
