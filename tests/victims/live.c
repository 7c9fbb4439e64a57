// A program that knows nothing of us, and tells of every disturbance.
//
//     live CALL THREADS [signals] [filtered] [namespaces] [leaderless] [traced] [some]
//     live again 0
//     live stuck 0 [executes]
//
// Each thread waits in CALL, again and again. It answers datagrams, sent to the port that it prints:
// "state", "fds", "take FD", "close FD", "watch FD". With "some", one more thread waits for the second
// datagram of recvmmsg(2) when it has one. "again" executes itself all the time, from another thread than the first. The
// first thread of "stuck" cannot be stopped; when somebody tries, another one executes it, if it is to.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *call;
static int sock, epoll_fd, pair[2], with_signals;
static volatile int next_signal;
static volatile unsigned long rounds;
static char wrong[200];
static struct sockaddr_in from;

static void complain(const char *what, long value) {
    if (!wrong[0]) snprintf(wrong, sizeof wrong, "%s: %s %ld errno %d", call, what, value, errno);
}

static int is(const char *name) { return !strcmp(call, name); }

// Real-time signals are queued: each comes once, in order, with its number.
static void on_signal(int signal, siginfo_t *info, void *context) {
    int before = errno;
    if (info->si_value.sival_int != next_signal++) complain("signal out of order", info->si_value.sival_int);
    errno = before;
}

static void answer(char *text, int length) {
    char out[2000];
    int fd = 0, n = 0;
    text[length] = 0;
    if (sscanf(text, "take %d", &fd) == 1) {
        n = recv(fd, out, sizeof out - 1, MSG_DONTWAIT);
        if (n < 0) n = sprintf(out, "errno %d", errno);
    } else if (sscanf(text, "close %d", &fd) == 1) {
        n = sprintf(out, "%d", close(fd));
    } else if (sscanf(text, "watch %d", &fd) == 1) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
        n = sprintf(out, "%d", epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event));
    } else if (!strcmp(text, "fds")) {
        for (int i = 0; i < 1024; i++)
            if (fcntl(i, F_GETFD) >= 0) n += sprintf(out + n, "%d%s ", i, fcntl(i, F_GETFD) ? "c" : "");
    } else {
        n = sprintf(out, "%s", wrong[0] ? wrong : "fine");
    }
    sendto(sock, out, n, 0, (struct sockaddr *)&from, sizeof from);
}

// Memory that the ABI gives to a function which calls nothing, and registers of every kind.
static __attribute__((noinline)) unsigned long spin(unsigned long turns) {
    volatile unsigned char zone[100];
    unsigned long a = 1, b = 2, c = 3, d = 4, bad = 0;
    double x = 1;
    for (int i = 0; i < 100; i++) zone[i] = i;
    for (unsigned long i = 0; i < turns; i++) {
        a = a * 31 + b, b = b * 37 + c, c = c * 41 + d, d = d * 43 + a;
        x = x * 0.5 + 1;
    }
    for (int i = 0; i < 100; i++) bad += zone[i] != i;
    return bad ? 1 : a ^ b ^ c ^ d ^ (unsigned long)(x * 1000);
}

static void wait_for_data(void) {
    static __thread unsigned long expected;
    struct timespec minute = {60, 0}, moment = {0, 20000000}, start, end;
    struct epoll_event event;
    struct pollfd poll_fd = {sock, POLLIN, 0};
    fd_set set;
    sigset_t mask;
    char byte;
    struct iovec piece = {&byte, 1};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &piece, .msg_iovlen = 1}};
    long got = 1;
    FD_ZERO(&set);
    FD_SET(sock, &set);
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    errno = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    if (is("recv")) got = recv(sock, &byte, 1, MSG_PEEK) >= 0;
    else if (is("recv_timed")) got = recv(sock, &byte, 1, MSG_PEEK) >= 0;
    else if (is("recvmsg")) got = recvmsg(sock, &message.msg_hdr, MSG_PEEK) >= 0;
    else if (is("recvmmsg")) got = recvmmsg(sock, &message, 1, MSG_PEEK, NULL);
    else if (is("poll")) got = poll(&poll_fd, 1, -1);
    else if (is("poll_timed")) got = poll(&poll_fd, 1, 60000);
    else if (is("ppoll")) got = ppoll(&poll_fd, 1, &minute, NULL);
    else if (is("select")) got = select(sock + 1, &set, NULL, NULL, NULL);
    else if (is("pselect")) got = pselect(sock + 1, &set, NULL, NULL, &minute, NULL);
    else if (is("epoll_wait")) got = epoll_wait(epoll_fd, &event, 1, -1);
    else if (is("epoll_pwait")) got = epoll_pwait(epoll_fd, &event, 1, 60000, &mask);
    else if (is("nanosleep")) got = 1 + nanosleep(&moment, NULL);
    else if (is("clock_nanosleep")) {
        errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, NULL);
        got = errno ? 0 : 1;
    } else {
        unsigned long have = spin(3000000);
        if (expected && have != expected) complain("wrong sum", have);
        expected = have;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double took = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) * 1e-9;
    // With signals, these calls tell of them whatever SA_RESTART says (signal(7)).
    int may = with_signals && errno == EINTR && !is("recv") && !is("recvmsg") && !is("recvmmsg");
    if (got < 1 && !may) complain("answered", got);
    if (strstr(call, "nanosleep") && got == 1 && took < 0.02) complain("woke early, µs", took * 1e6);
    rounds++;
}

static void *thread(void *unused) {
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    for (;;) {
        char text[100];
        socklen_t size = sizeof from;
        wait_for_data();
        pthread_mutex_lock(&one);
        int length = recvfrom(sock, text, sizeof text - 1, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
        if (length >= 0) answer(text, length);
        else if (errno != EAGAIN) complain("recvfrom", length);
        pthread_mutex_unlock(&one);
    }
    return NULL;
}

static int own;

// A socket that sends to itself.
static int make_own(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    own = socket(AF_INET, SOCK_DGRAM, 0);
    return bind(own, (struct sockaddr *)&address, size) || getsockname(own, (struct sockaddr *)&address, &size) ||
           connect(own, (struct sockaddr *)&address, size);
}

// What disturbs it when it has one must not become an error of the socket.
static void *some(void *unused) {
    char byte;
    struct iovec piece = {&byte, 1};
    struct mmsghdr two[2] = {{.msg_hdr = {.msg_iov = &piece, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &piece, .msg_iovlen = 1}}};
    for (;;) {
        if (send(own, "", 1, 0) != 1) complain("send", errno);
        int got = recvmmsg(own, two, 2, 0, NULL);
        if (got != 1) complain("recvmmsg", got);
        got = recv(own, &byte, 1, MSG_DONTWAIT);
        if (got >= 0 || errno != EAGAIN) complain("after recvmmsg", got);
    }
    return NULL;
}

static void *again(void *number) {
    struct timespec moment = {0, 1000000};
    nanosleep(&moment, NULL);
    execl("/proc/self/exe", "live", "again", number, NULL);
    return NULL;
}

// By the number that another thread has, which executes a program, waits who has stopped the first.
static void *when_traced(void *number) {
    char path[40], text[2000];
    sprintf(path, "/proc/%d/status", getpid());
    for (;;) {
        int file = open(path, O_RDONLY), length = read(file, text, sizeof text - 1);
        close(file);
        text[length < 0 ? 0 : length] = 0;
        char *tracer = strstr(text, "TracerPid:");
        if (tracer && atoi(tracer + 10)) execl("/proc/self/exe", "live", "again", number, "stays", NULL);
    }
    return NULL;
}

static int run_again(int count, char **words) {
    static char text[20];
    char *number = words[2];
    int executes = count > 3 && !strcmp(words[3], "executes");
    pthread_t new;
    if (!strcmp(number, "0")) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof address;
        close_range(3, ~0U, 0);
        sock = socket(AF_INET, SOCK_DGRAM, 0);
        if (bind(sock, (struct sockaddr *)&address, size) || getsockname(sock, (struct sockaddr *)&address, &size)) return 2;
        printf("{\"port\": %d, \"fd\": %d}\n", ntohs(address.sin_port), sock);
        sprintf(number = text, "%d", sock);
    }
    if (is("again")) {
        fflush(stdout);
        if (count == 3 && pthread_create(&new, NULL, again, number)) return 2;
    } else {
        if (executes && pthread_create(&new, NULL, when_traced, number)) return 2;
        // Until its child ends, it can only be killed.
        if (vfork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(atoi(number));
            fflush(stdout);
            for (;;) pause();
        }
    }
    for (;;) pause();
}

static void filter(void) {
#define REFUSE(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        REFUSE(SYS_pidfd_open), REFUSE(SYS_pidfd_getfd), REFUSE(SYS_socket), REFUSE(SYS_connect),
        REFUSE(SYS_restart_syscall),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) exit(3);
}

static int child_of(int parent) {
    int child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (parent && getppid() != parent) _exit(0);
    }
    return child;
}

int main(int count, char **words) {
    int signals = 0, filtered = 0, namespaces = 0, leaderless = 0, traced = 0, with_some = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    call = words[1];
    if (is("again") || is("stuck")) return run_again(count, words);
    // Whatever it was started with.
    close_range(3, ~0U, 0);
    for (int i = 3; i < count; i++) {
        signals |= !strcmp(words[i], "signals");
        filtered |= !strcmp(words[i], "filtered");
        namespaces |= !strcmp(words[i], "namespaces");
        leaderless |= !strcmp(words[i], "leaderless");
        traced |= !strcmp(words[i], "traced");
        with_some |= !strcmp(words[i], "some");
    }
    sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(sock, (struct sockaddr *)&address, size) || getsockname(sock, (struct sockaddr *)&address, &size)) return 2;
    // What it talks by is of the first network namespace.
    if (namespaces) {
        if (unshare(CLONE_NEWPID | CLONE_NEWNET)) return 2;
        int child = child_of(0);
        if (child) {
            int status;
            // Wakes with its parent: stdin is closed then.
            waitpid(child, &status, 0);
            return 0;
        }
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, sock, &event)) return 2;
    struct timeval minute = {60, 0};
    if (is("recv_timed")) setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &minute, sizeof minute);
    with_signals = signals;
    if (signals) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
        sigaction(SIGRTMIN, &action, NULL);
        int parent = getpid();
        if (child_of(parent) == 0)
            for (int i = 0;; i++) {
                struct timespec pause = {0, 100000};
                // The queue can be full: then it tries again.
                while (sigqueue(parent, SIGRTMIN, (union sigval){.sival_int = i}) && errno == EAGAIN) nanosleep(&pause, NULL);
                nanosleep(&pause, NULL);
            }
    }
    if (traced) {
        int parent = getpid(), ready[2];
        char byte;
        if (pipe(ready)) return 2;
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        if (child_of(parent) == 0) {
            ptrace(PTRACE_SEIZE, parent, 0, 0);
            if (write(ready[1], "", 1) != 1) _exit(1);
            for (;;) pause();
        }
        if (read(ready[0], &byte, 1) != 1) return 2;
        close(ready[0]), close(ready[1]);
    }
    pthread_t new;
    if (with_some && make_own()) return 2;
    if (with_some && pthread_create(&new, NULL, some, NULL)) return 2;
    if (filtered) filter();
    // Only the first thread gets the signals, so that their order can be told.
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    for (int i = 1; i < atoi(words[2]); i++) {
        if (pthread_create(&new, NULL, thread, NULL)) return 2;
    }
    printf("{\"port\": %d, \"fd\": %d}\n", ntohs(address.sin_port), sock);
    fflush(stdout);
    if (leaderless) pthread_exit(NULL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    thread(NULL);
    return 0;
}
