// SPDX-License-Identifier: Apache-2.0
// rx recv|devmem|zcrx PORT [INTERFACE QUEUE]: receives one TCP connection and says "bytes linear seconds".
// rx send ADDRESS PORT BYTES: sends as many zeros, over IPv4.
//
// The payload is not looked at. recv: into ordinary memory, by copy. devmem: frags of the memory that the process
// before exec bound, given back at once. zcrx: io_uring zero-copy receive on a queue of INTERFACE.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_DEVMEM_DONTNEED
#define SO_DEVMEM_LINEAR 78
#define SO_DEVMEM_DMABUF 79
#define SO_DEVMEM_DONTNEED 80
#endif
#ifndef MSG_SOCK_DEVMEM
#define MSG_SOCK_DEVMEM 0x2000000
#endif

enum { BUFFER = 1 << 20, CONTROL = 64 << 10, AREA = 64 << 20, RQ_ENTRIES = 8192, RUNS = 128 };

// As in linux/uio.h, for whichever C library comes first.
struct frag { uint64_t offset; uint32_t size, token, dmabuf_id, flags; };
struct run { uint32_t start, count; };

static uint64_t bytes, linear;

static void die(const char *what)
{
	fprintf(stderr, "rx: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int listen_at(int port)
{
	struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int one = 1, fd = socket(AF_INET6, SOCK_STREAM, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 1))
		die("listen");
	return fd;
}

static void by_copy(int fd)
{
	static char buffer[BUFFER];
	ssize_t n;

	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		bytes += n;
	if (n < 0)
		die("recv");
}

static void give_back(int fd, struct run *runs, int n)
{
	if (n && setsockopt(fd, SOL_SOCKET, SO_DEVMEM_DONTNEED, runs, n * sizeof(*runs)) < 0)
		die("SO_DEVMEM_DONTNEED");
}

static void devmem(int fd)
{
	static char buffer[BUFFER], control[CONTROL];

	for (;;) {
		struct iovec iov = { buffer, sizeof(buffer) };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
				      .msg_controllen = sizeof(control) };
		struct run runs[RUNS];
		ssize_t n = recvmsg(fd, &msg, MSG_SOCK_DEVMEM);
		int used = 0;

		if (n < 0)
			die("recvmsg");
		if (!n)
			return;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
			struct frag *f = (struct frag *)CMSG_DATA(c);

			if (c->cmsg_type == SO_DEVMEM_LINEAR)
				linear += f->size;
			if (c->cmsg_type != SO_DEVMEM_DMABUF)
				continue;
			bytes += f->size;
			if (used && runs[used - 1].start + runs[used - 1].count == f->token) {
				runs[used - 1].count++;
				continue;
			}
			if (used == RUNS) {
				give_back(fd, runs, used);
				used = 0;
			}
			runs[used++] = (struct run){ f->token, 1 };
		}
		give_back(fd, runs, used);
	}
}

static void zcrx(int listener, int *fd, double *start, const char *interface, int queue)
{
	size_t ring_size = 4096 + RQ_ENTRIES * sizeof(struct io_uring_zcrx_rqe);
	void *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
	void *memory = mmap(NULL, ring_size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
	struct io_uring_zcrx_area_reg area_reg = { .addr = (uintptr_t)area, .len = AREA };
	struct io_uring_region_desc region = { .user_addr = (uintptr_t)memory, .size = ring_size,
					       .flags = IORING_MEM_REGION_TYPE_USER };
	struct io_uring_zcrx_ifq_reg reg = { .if_idx = if_nametoindex(interface), .if_rxq = queue,
					     .rq_entries = RQ_ENTRIES, .area_ptr = (uintptr_t)&area_reg,
					     .region_ptr = (uintptr_t)&region };
	struct io_uring_zcrx_rqe *rqes;
	struct io_uring ring;
	uint32_t *tail, filled = 0;
	int open = 1, r;

	r = io_uring_queue_init(256, &ring, IORING_SETUP_CQE32 | IORING_SETUP_SINGLE_ISSUER |
					    IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL);
	if (!r)
		r = io_uring_register_ifq(&ring, &reg);
	if (r) {
		errno = -r;
		die("io_uring zcrx");
	}
	tail = (uint32_t *)((char *)memory + reg.offsets.tail);
	rqes = (void *)((char *)memory + reg.offsets.rqes);
	*fd = accept(listener, NULL, NULL);
	*start = now();
	for (int armed = 0; open;) {
		struct io_uring_cqe *cqe;
		unsigned head, seen = 0;

		if (!armed) {
			struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

			io_uring_prep_rw(IORING_OP_RECV_ZC, sqe, *fd, NULL, 0, 0);
			sqe->ioprio |= IORING_RECV_MULTISHOT;
			sqe->zcrx_ifq_idx = reg.zcrx_id;
			armed = 1;
		}
		if (io_uring_submit_and_wait(&ring, 1) < 0)
			die("io_uring_submit_and_wait");
		io_uring_for_each_cqe(&ring, head, cqe) {
			struct io_uring_zcrx_cqe *where = (struct io_uring_zcrx_cqe *)(cqe + 1);
			struct io_uring_zcrx_rqe *rqe = &rqes[filled & (RQ_ENTRIES - 1)];

			seen++;
			if (!(cqe->flags & IORING_CQE_F_MORE)) {
				armed = 0;
				open = cqe->res > 0 || cqe->res == -ENOSPC;
				if (cqe->res < 0 && cqe->res != -ENOSPC) {
					errno = -cqe->res;
					die("RECV_ZC");
				}
				continue;
			}
			bytes += cqe->res;
			rqe->off = (where->off & ~IORING_ZCRX_AREA_MASK) | area_reg.rq_area_token;
			rqe->len = cqe->res;
			io_uring_smp_store_release(tail, ++filled);
		}
		io_uring_cq_advance(&ring, seen);
	}
}

static void send_all(const char *address, int port, uint64_t left)
{
	static char buffer[BUFFER];
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || inet_pton(AF_INET, address, &to.sin_addr) != 1 ||
	    connect(fd, (struct sockaddr *)&to, sizeof(to)))
		die("connect");
	while (left) {
		ssize_t n = send(fd, buffer, left < sizeof(buffer) ? left : sizeof(buffer), 0);

		if (n < 0)
			die("send");
		left -= n;
	}
}

int main(int argc, char **argv)
{
	double start;
	int fd;

	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "send") && argc == 5) {
		send_all(argv[2], atoi(argv[3]), strtoull(argv[4], NULL, 10));
		return 0;
	}
	int listener = listen_at(atoi(argv[2]));

	if (!strcmp(argv[1], "zcrx") && argc == 5) {
		zcrx(listener, &fd, &start, argv[3], atoi(argv[4]));
	} else {
		fd = accept(listener, NULL, NULL);
		start = now();
		if (!strcmp(argv[1], "devmem"))
			devmem(fd);
		else
			by_copy(fd);
	}
	printf("%llu %llu %.6f\n", (unsigned long long)bytes, (unsigned long long)linear, now() - start);
	return 0;
}
