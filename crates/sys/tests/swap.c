// A program that knows nothing of us, echoes datagrams, and ends with an error at any disturbance.
//
//     swap CALL PROCESSES THREADS [own] [dup]
//
// Each thread of each process waits in CALL, again and again, for the one socket. "own": each thread has its
// own table of descriptors; "dup": the socket has a second number, and its registration the number of a third one
// that is closed. It prints its port, its descriptors, and PID:TID of each table.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DATA 0x1122334455667788

static const char *call;
static int sock, registered, epoll_fd = -1, own;
static volatile int *ready;

static int is(const char *name) { return !strcmp(call, name); }

static void die(const char *what) {
    fprintf(stderr, "%s: %s errno %d\n", call, what, errno);
    _exit(1);
}

static unsigned events(void) {
    if (is("epoll_et")) return EPOLLIN | EPOLLET;
    if (is("epoll_oneshot")) return EPOLLIN | EPOLLONESHOT;
    if (is("epoll_exclusive")) return EPOLLIN | EPOLLEXCLUSIVE;
    return EPOLLIN;
}

static void register_it(void) {
    struct epoll_event event = {.events = events(), .data.u64 = DATA};
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, registered, &event)) die("EPOLL_CTL_ADD");
}

static int take(int flags) {
    char bytes[100];
    struct sockaddr_in from;
    struct iovec piece = {bytes, sizeof bytes};
    struct msghdr message = {&from, sizeof from, &piece, 1};
    int length = recvmsg(sock, &message, flags);
    if (length < 0 && errno == EAGAIN && flags) return 0;
    if (length < 0) die("recvmsg");
    if (sendto(sock, bytes, length, 0, (void *)&from, message.msg_namelen) != length) die("sendto");
    return 1;
}

static void wait_for_data(void) {
    struct pollfd asked = {sock, POLLIN};
    struct epoll_event event;
    char byte;
    if (is("recv") && recv(sock, &byte, 1, MSG_PEEK) < 0) die("recv");
    if (is("poll") && poll(&asked, 1, -1) != 1) die("poll");
    if (is("poll_timed") && poll(&asked, 1, 60000) != 1) die("poll");
    if (strncmp(call, "epoll", 5)) return;
    if (epoll_wait(epoll_fd, &event, 1, -1) != 1) die("epoll_wait");
    if (event.data.u64 != DATA) die("other data");
}

static void *thread(void *unused) {
    if (own && unshare(CLONE_FILES)) die("unshare");
    printf(" %d:%ld", getpid(), own ? syscall(SYS_gettid) : getpid());
    fflush(stdout);
    __atomic_add_fetch(ready, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        struct epoll_event event = {.events = events(), .data.u64 = DATA};
        wait_for_data();
        int waits = is("recvmsg") ? 0 : MSG_DONTWAIT;
        while (take(waits) && is("epoll_et")) {}
        if (is("epoll_oneshot") && epoll_ctl(epoll_fd, EPOLL_CTL_MOD, registered, &event)) die("EPOLL_CTL_MOD");
    }
    return NULL;
}

static void child_of(int parent, int threads) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (is("epoll_exclusive")) register_it();
    for (int i = 1; i < threads; i++) {
        pthread_t new;
        if (pthread_create(&new, NULL, thread, NULL)) die("pthread_create");
    }
    thread(NULL);
}

int main(int count, char **words) {
    int processes = atoi(words[2]), threads = atoi(words[3]), parent = getpid(), second = 0, status;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    call = words[1];
    for (int i = 4; i < count; i++) {
        own |= !strcmp(words[i], "own");
        second |= !strcmp(words[i], "dup");
    }
    ready = mmap(NULL, sizeof *ready, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    registered = sock = socket(AF_INET, SOCK_DGRAM | (second ? SOCK_CLOEXEC : 0), 0);
    if (bind(sock, (void *)&address, size) || getsockname(sock, (void *)&address, &size)) die("bind");
    printf("%d %d", ntohs(address.sin_port), sock);
    if (second) {
        registered = dup(sock);
        printf(",%d", dup(sock));
    }
    fflush(stdout);
    if (!is("epoll_exclusive")) register_it();
    if (second) {
        close(registered);
        // Whatever was armed once cannot be again by that number.
        if (is("epoll_oneshot")) die("dup");
    }
    // Descriptors of the parent would be tables too.
    for (int i = 0; i < processes; i++)
        if (fork() == 0) child_of(parent, threads);
    while (*ready < processes * threads) usleep(1000);
    close(sock), close(epoll_fd);
    if (second) close_range(sock, ~0U, 0);
    printf("\n");
    fflush(stdout);
    // One that is killed is not missed; one that complains ends them all.
    while (wait(&status) > 0 && WIFSIGNALED(status)) {}
    return 1;
}
