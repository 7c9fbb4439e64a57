// A program with a socket that is held by more than its descriptor; it sends back what it gets.
//
//     held HOW
//
// HOW: ring (a file of an io_uring), request (a request of one), message (in a message on its way), map (in
// a sockmap), tunnel (of the kernel), traced, raw, unlisted (registered in an epoll instance under a number
// that is closed), sent_epoll (in an instance that nobody has open), full (no descriptor is free), executes (another thread
// executes the program anew, each few milliseconds until something is sent to it), asleep (its first thread waits for a child
// by vfork(2), and another one receives).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/udp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *how;
static char buffer[2000];

static int is(const char *name) { return !strcmp(how, name); }

static void fail(const char *what) {
    perror(what);
    exit(2);
}

static void ring(int sock, int request) {
    struct io_uring_params parameters = {0};
    int fd = syscall(SYS_io_uring_setup, 4, &parameters);
    if (fd < 0) fail("io_uring_setup");
    if (!request) {
        if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_FILES, &sock, 1)) fail("io_uring_register");
        return;
    }
    size_t size = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
    char *queue = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
    size = parameters.sq_entries * sizeof(struct io_uring_sqe);
    struct io_uring_sqe *entry = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
    if (queue == MAP_FAILED || (void *)entry == MAP_FAILED) fail("mmap");
    *entry = (struct io_uring_sqe){.opcode = IORING_OP_RECV, .fd = sock, .addr = (uintptr_t)buffer, .len = sizeof buffer};
    ((unsigned *)(queue + parameters.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(queue + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, fd, 1, 0, 0, NULL, 0) != 1) fail("io_uring_enter");
}

static void message(int fd) {
    int pair[2];
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec piece = {"", 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) || sendmsg(pair[0], &message, 0) != 1) fail("message");
}

static void map(int sock) {
    union bpf_attr attributes = {.map_type = BPF_MAP_TYPE_SOCKMAP, .key_size = 4, .value_size = 8, .max_entries = 1};
    int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
    uint32_t key = 0;
    uint64_t value = sock;
    if (fd < 0) fail("sockmap");
    memset(&attributes, 0, sizeof attributes);
    attributes.map_fd = fd, attributes.key = (uintptr_t)&key, attributes.value = (uintptr_t)&value;
    if (syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attributes, sizeof attributes)) fail("into the sockmap");
}

static int watched(int fd) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) fail("epoll");
    return epoll;
}

static void traced(int sock) {
    int parent = getpid(), ready[2];
    char byte;
    if (pipe(ready)) fail("pipe");
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(sock);
        if (getppid() != parent || ptrace(PTRACE_SEIZE, parent, 0, 0) || write(ready[1], "", 1) != 1) _exit(1);
        for (;;) pause();
    }
    if (read(ready[0], &byte, 1) != 1) fail("PTRACE_SEIZE");
    close(ready[0]), close(ready[1]);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int rests;

static void *execute(void *fd) {
    for (;;) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        usleep(now.tv_nsec % 5000);
        pthread_mutex_lock(&lock);
        if (!rests) execl("/proc/self/exe", "held", "executes", (char *)fd, NULL);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

// Until something has come, which it leaves where it is.
static void executed(int sock) {
    static char fd[16];
    pthread_t thread;
    snprintf(fd, sizeof fd, "%d", sock);
    if (pthread_create(&thread, NULL, execute, fd)) fail("pthread_create");
    if (recv(sock, buffer, 1, MSG_PEEK) < 0) fail("recv");
    pthread_mutex_lock(&lock);
    rests = 1;
    pthread_mutex_unlock(&lock);
}

static void echo(int sock) {
    struct sockaddr_in from;
    for (;;) {
        socklen_t size = sizeof from;
        long length = recvfrom(sock, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &size);
        if (length < 0) fail("recvfrom");
        sendto(sock, buffer, length, 0, (struct sockaddr *)&from, size);
    }
}

static void *receive(void *sock) {
    echo(*(int *)sock);
    return NULL;
}

static void asleep(int *sock) {
    struct timeval hour = {.tv_sec = 3600};
    pthread_t thread;
    // With a timeout, who receives is told EINTR for a mere interruption.
    if (setsockopt(*sock, SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof hour)) fail("SO_RCVTIMEO");
    if (pthread_create(&thread, NULL, receive, sock)) fail("pthread_create");
    if (vfork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (count != 2 && count != 3) return 2;
    how = words[1];
    if (count == 3) {
        executed(atoi(words[2]));
        echo(atoi(words[2]));
    }
    // Whatever it was started with.
    close_range(3, ~0U, 0);
    int sock = is("raw") ? socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) : socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(sock, (struct sockaddr *)&address, size) || getsockname(sock, (struct sockaddr *)&address, &size)) fail("bind");
    if (is("ring") || is("request")) ring(sock, is("request"));
    if (is("message")) message(sock);
    if (is("map")) map(sock);
    int encapsulated = UDP_ENCAP_ESPINUDP;
    if (is("tunnel") && setsockopt(sock, IPPROTO_UDP, UDP_ENCAP, &encapsulated, sizeof encapsulated)) fail("UDP_ENCAP");
    if (is("unlisted")) {
        int other = dup(sock);
        watched(other);
        close(other);
    }
    if (is("sent_epoll")) {
        int epoll = watched(sock);
        message(epoll);
        close(epoll);
    }
    if (is("traced")) traced(sock);
    struct rlimit limit = {.rlim_cur = sock + 1, .rlim_max = 1024};
    if (is("full") && setrlimit(RLIMIT_NOFILE, &limit)) fail("RLIMIT_NOFILE");
    printf("{\"fd\": %d, \"port\": %d}\n", sock, ntohs(address.sin_port));
    fflush(stdout);
    if (is("request") || is("raw") || is("tunnel")) pause();
    if (is("executes")) executed(sock);
    if (is("asleep")) asleep(&sock);
    echo(sock);
}
