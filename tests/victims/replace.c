// A program that receives numbered datagrams, knows nothing of us, and tells of every disturbance.
//
//     replace CALL [WORD...]
//
// CALL is what each of its threads waits in, again and again. WORDs, of which any may be left out:
//     threads=N workers=N members=N flows=N   how many threads, forked processes, sockets of one group, senders
//     ipv6 mapped any connected group device  the kind of socket
//     by_program                              the group has a program that chooses by the first byte
//     small                                   no larger receive buffer than everybody has
//     two tables                              two descriptors of the socket; each thread with a table of its own
//     signals filtered leaderless             a signal each 100 µs; a seccomp filter; without its first thread
//     churn forks spawns                      a thread, a process, a program starts and ends all the time
//
// This process has no socket under test: it sends, and counts in shared memory what its child receives. It
// is told by lines: "start RATE", "stop", "check", and answers the last two with a line of JSON.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PLACES = 256, FLOWS = 16, MEMBERS = 8, WORKERS = 8, MOST = 1 << 23, MARK = 0x5343 };
// More than this never waits: no receive buffer runs over, however long the receiver stands still.
enum { WINDOW = 8000, SMALL_WINDOW = 200 };

struct datagram {
    uint8_t member, flow;
    uint16_t mark;
    uint32_t zero;
    uint64_t number;
};

static struct {
    _Atomic int ready, rate, pace, wave, parked, inside;
    int pids[WORKERS], fds[2 * MEMBERS], fd_count, port, sender_ports[FLOWS];
    _Atomic unsigned long sent, got, disordered, errors, strayed, handled, cut;
    _Atomic int last_error, complaining;
    _Atomic int awake[PLACES];
    _Atomic signed char home[FLOWS];
    char wrong[300];
    _Atomic uint8_t seen[MOST];
} *shared;

static const char *call;
static int threads = 1, workers = 1, members = 1, flows = 1;
static int ipv6, mapped, any, connected, group, device, by_program, small, two, tables;
static int with_signals, filtered, leaderless, churn, forks, spawns;
static int out[FLOWS], arm[2], socks[MEMBERS];
static struct sockaddr_storage target;
static socklen_t target_size;

// Where one thread waits.
struct place {
    int number, worker, member, fd, epoll, inner;
};

static void complain(const char *what, long value) {
    int error = errno;
    if (!atomic_exchange(&shared->complaining, 1))
        snprintf(shared->wrong, sizeof shared->wrong, "%s: %s %ld errno %d", call, what, value, error);
}

static int is(const char *name) { return !strcmp(call, name); }
// Its socket is armed by the other registration in its instance alone: level-triggered, edge-triggered or one-shot.
static int disarmed(void) { return !strncmp(call, "disarmed", 8); }
static uint32_t events_of_arm(void) { return EPOLLIN | (is("disarmed_edge") ? EPOLLET : is("disarmed_once") ? EPOLLONESHOT : 0); }

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void nap(long microseconds) {
    struct timespec time = {0, microseconds * 1000};
    nanosleep(&time, NULL);
}

// Real-time signals are queued: each comes once, in order, with its number.
static void on_signal(int signal, siginfo_t *info, void *context) {
    int before = errno;
    if ((unsigned long)info->si_value.sival_int != shared->handled++) complain("signal out of order", info->si_value.sival_int);
    errno = before;
}

// The group is that of this device where it is there.
static unsigned multicast_device(void) {
    static unsigned index;
    if (!index) index = group ? if_nametoindex("v0") : 0;
    return index ? index : 1;
}

// --- receiving ---

static void take(struct place *place, const struct datagram *datagram, long length, const struct sockaddr_storage *from) {
    static __thread uint64_t latest[FLOWS];
    if (length != sizeof *datagram || datagram->mark != MARK || datagram->zero || datagram->number >= MOST || datagram->flow >= flows) {
        complain("not one of ours, bytes", length);
        return;
    }
    int port = ntohs(((const struct sockaddr_in *)from)->sin_port);
    if (port != shared->sender_ports[datagram->flow]) complain("from another port", port);
    if (shared->seen[datagram->number]++ == 0) shared->got++;
    // What one thread takes is in order, however many there are.
    if (datagram->number < latest[datagram->flow]) shared->disordered++;
    else latest[datagram->flow] = datagram->number;
    if (by_program && datagram->member != place->member) complain("chosen for another member", datagram->member);
    if (!by_program && members > 1) {
        int home = shared->home[datagram->flow];
        if (home >= 0 && home != place->member) shared->strayed++;
        shared->home[datagram->flow] = place->member;
    }
}

static void look_at_control(struct msghdr *message) {
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level != IPPROTO_IP || part->cmsg_type != IP_PKTINFO) continue;
        struct in_pktinfo info;
        memcpy(&info, CMSG_DATA(part), sizeof info);
        if ((unsigned)info.ipi_ifindex != multicast_device()) complain("came by another device", info.ipi_ifindex);
        if (!group && info.ipi_addr.s_addr != htonl(INADDR_LOOPBACK)) complain("came to another address", ntohl(info.ipi_addr.s_addr));
    }
}

// Takes all that is there, as programs do that were told there is something.
static void drain(struct place *place) {
    for (;;) {
        struct datagram datagram;
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
        long length = recvfrom(place->fd, &datagram, sizeof datagram, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
        if (length < 0) {
            if (errno != EAGAIN) complain("recvfrom", length);
            return;
        }
        take(place, &datagram, length, &from);
    }
}

static uint64_t data_of(int fd) { return 0x7700000000000000 | (uint64_t)fd << 8 | 0x5a; }

static uint32_t events_of(void) {
    if (is("edge") || is("nested_edge")) return EPOLLIN | EPOLLET;
    if (is("oneshot") || disarmed()) return EPOLLIN | EPOLLONESHOT;
    if (is("exclusive")) return EPOLLIN | EPOLLEXCLUSIVE;
    return EPOLLIN;
}

static void watch(int epoll, int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = data_of(fd)};
    if (epoll_ctl(epoll, operation, fd, &event)) complain("epoll_ctl", fd);
}

// What an instance tells: 1 when the socket has something.
static int told(struct place *place, struct epoll_event *events, int count) {
    int ready = 0, armed = 0;
    for (int i = 0; i < count; i++) {
        if (events[i].events != EPOLLIN) complain("events", events[i].events);
        if (events[i].data.u64 == data_of(arm[0])) {
            armed = 1;
        } else if (events[i].data.u64 == data_of(place->inner) && place->inner >= 0) {
            struct epoll_event inside[4];
            int more = epoll_wait(place->inner, inside, 4, 0);
            if (more < 0) complain("inner epoll_wait", more);
            for (int j = 0; j < more; j++)
                if (inside[j].data.u64 != data_of(place->fd) || inside[j].events != EPOLLIN) complain("inner data", inside[j].events);
            ready |= more > 0;
        } else {
            int known = 0;
            for (int j = 0; j < shared->fd_count; j++) known |= events[i].data.u64 == data_of(shared->fds[j]);
            known |= events[i].data.u64 == data_of(place->fd);
            if (!known) complain("data", events[i].data.u64);
            if (disarmed() && !atomic_exchange(&shared->inside, 0)) complain("fired while disarmed", 0);
            if (is("oneshot") && shared->inside++) complain("fired twice", 0);
            ready = 1;
        }
    }
    if (armed) {
        // After the events before it, which it may have been armed for already. Read last: who finds the pipe
        // empty knows that it is armed.
        char bytes[4096];
        atomic_store(&shared->inside, 1);
        watch(place->epoll, EPOLL_CTL_MOD, place->fd, events_of());
        if (read(arm[0], bytes, sizeof bytes) < 1) complain("arm", 0);
        if (is("disarmed_once")) watch(place->epoll, EPOLL_CTL_MOD, arm[0], events_of_arm());
    }
    return ready;
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

static void wait_and_take(struct place *place) {
    static __thread unsigned long expected;
    // Less what the kernel's clock ticks by.
    const double moment = 0.02 - 0.005;
    struct timespec minute = {60, 0};
    struct epoll_event events[4];
    struct pollfd poll_fd = {place->fd, POLLIN, 0};
    fd_set set;
    sigset_t mask;
    struct datagram datagrams[8];
    struct sockaddr_storage from[8];
    struct iovec pieces[8];
    struct mmsghdr messages[8];
    char control[200];
    socklen_t size = sizeof from[0];
    long got = 1;
    int direct = 0, in_epoll = 0, timed = 0;
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < 8; i++) {
        pieces[i] = (struct iovec){&datagrams[i], sizeof datagrams[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &from[i], .msg_namelen = sizeof from[i], .msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    messages[0].msg_hdr.msg_control = control, messages[0].msg_hdr.msg_controllen = sizeof control;
    FD_ZERO(&set);
    FD_SET(place->fd, &set);
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    unsigned long handled = shared->handled;
    double start = now();
    errno = 0;
    if (is("recv") || is("recv_timed") || is("recv_short")) {
        got = recvfrom(place->fd, datagrams, sizeof datagrams[0], 0, (struct sockaddr *)from, &size);
        timed = is("recv_short") && got < 0 && errno == EAGAIN;
        if (got >= 0) take(place, datagrams, got, from);
        direct = 1;
    } else if (is("recvmsg")) {
        got = recvmsg(place->fd, &messages[0].msg_hdr, 0);
        if (got >= 0) {
            look_at_control(&messages[0].msg_hdr);
            take(place, datagrams, got, from);
        }
        direct = 1;
    } else if (is("recvmmsg")) {
        got = recvmmsg(place->fd, messages, 8, MSG_WAITFORONE, NULL);
        for (int i = 0; i < got; i++) take(place, &datagrams[i], messages[i].msg_len, &from[i]);
        direct = 1;
    } else if (is("recvmmsg_two")) {
        // It waits for the second with the first in hand, and answers that when it is interrupted. The interruption is
        // the pending error of the socket then (do_recvmmsg), which the next call would tell.
        got = recvmmsg(place->fd, messages, 2, 0, NULL);
        if (got == 1) shared->cut++;
        for (int i = 0; i < got; i++) take(place, &datagrams[i], messages[i].msg_len, &from[i]);
        direct = 1;
    } else if (is("poll")) got = poll(&poll_fd, 1, -1);
    else if (is("poll_timed")) got = poll(&poll_fd, 1, 60000);
    else if (is("poll_short")) got = poll(&poll_fd, 1, 20), timed = got == 0;
    else if (is("ppoll")) got = ppoll(&poll_fd, 1, &minute, &mask);
    else if (is("select")) got = select(place->fd + 1, &set, NULL, NULL, NULL);
    else if (is("pselect")) got = pselect(place->fd + 1, &set, NULL, NULL, &minute, &mask);
    else if (is("spin")) {
        unsigned long have = spin(300000);
        if (expected && have != expected) complain("wrong sum", have);
        expected = have;
    } else {
        int patience = is("epoll_timed") ? 60000 : is("epoll_short") ? 20 : -1;
        got = is("epoll_pwait") ? epoll_pwait(place->epoll, events, 4, 60000, &mask) : epoll_wait(place->epoll, events, 4, patience);
        timed = is("epoll_short") && got == 0;
        in_epoll = 1;
    }
    double took = now() - start;
    if (timed && took < moment) complain("gave up early, µs", took * 1e6);
    if (timed) return;
    if (got < 1) {
        // With signals these calls tell of them, whatever SA_RESTART says (signal(7)).
        int may = with_signals && errno == EINTR && !is("recv") && !is("recvmsg") && !is("recvmmsg");
        if (!may) complain("answered", got);
        else if (shared->handled == handled) complain("EINTR without a signal", got);
        return;
    }
    if (poll_fd.revents & ~POLLIN) complain("revents", poll_fd.revents);
    if (in_epoll && !told(place, events, got)) return;
    if (!direct) drain(place);
    if (is("oneshot")) {
        shared->inside--;
        watch(place->epoll, EPOLL_CTL_MOD, place->fd, events_of());
    }
    // All must come, one after the other: each has taken something by now.
    static __thread int wave;
    int current = shared->wave;
    if (wave == current) return;
    wave = current;
    shared->awake[place->number] = current;
    shared->parked++;
    while (shared->parked < threads * workers * members && shared->wave == current) nap(200);
}

static void make_epoll(struct place *place) {
    int edge = is("nested_edge") ? EPOLLET : 0;
    place->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (is("nested") || is("nested_edge")) {
        place->inner = epoll_create1(0);
        watch(place->epoll, EPOLL_CTL_ADD, place->inner, EPOLLIN | edge);
        watch(place->inner, EPOLL_CTL_ADD, place->fd, events_of());
        return;
    }
    watch(place->epoll, EPOLL_CTL_ADD, place->fd, events_of());
    if (!disarmed()) return;
    watch(place->epoll, EPOLL_CTL_ADD, arm[0], events_of_arm());
    shared->inside = 1;
}

static void *thread(void *argument) {
    struct place *place = argument;
    if (tables) {
        if (unshare(CLONE_FILES)) complain("unshare", 0);
        int fd = fcntl(place->fd, F_DUPFD, 60 + place->number % 100);
        close(place->fd);
        place->fd = fd;
        // By the first of them the socket is named.
        if (place->number < members) shared->fds[place->number] = fd;
        if (place->epoll >= 0) {
            close(place->epoll);
            make_epoll(place);
        }
    }
    // A process without its first thread is named by another.
    if (leaderless && place->number == 0) shared->pids[0] = syscall(SYS_gettid);
    shared->ready++;
    for (;;) wait_and_take(place);
    return NULL;
}

static void *short_lived(void *unused) { return NULL; }

static void *churning(void *unused) {
    for (;;) {
        pthread_t new;
        pid_t child = -1;
        char *words[] = {"true", NULL};
        if (forks && (child = fork()) == 0) _exit(0);
        // Its parent sleeps where nothing interrupts it until the program is there (vfork(2)).
        if (spawns && posix_spawnp(&child, words[0], NULL, NULL, words, environ)) complain("posix_spawn", 0);
        if ((forks || spawns) && (child < 0 || waitpid(child, NULL, 0) != child)) complain("child", child);
        if (forks || spawns) continue;
        if (pthread_create(&new, NULL, short_lived, NULL)) complain("pthread_create", 0);
        else pthread_join(new, NULL);
    }
    return NULL;
}

static void filter(void) {
#define REFUSE(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        REFUSE(SYS_pidfd_open), REFUSE(SYS_pidfd_getfd), REFUSE(SYS_socket), REFUSE(SYS_connect), REFUSE(SYS_dup3),
        REFUSE(SYS_epoll_ctl), REFUSE(SYS_close), REFUSE(SYS_fcntl), REFUSE(SYS_setsockopt), REFUSE(SYS_bind),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) exit(3);
}

static int child_of(int parent) {
    int child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        if (getppid() != parent) _exit(0);
    }
    return child;
}

static void fail(const char *what) {
    perror(what);
    _exit(2);
}

// An address of loopback, or what else receives.
static socklen_t address(struct sockaddr_storage *storage, int receives, int port) {
    memset(storage, 0, sizeof *storage);
    if (ipv6 || (mapped && receives)) {
        struct sockaddr_in6 *in6 = (void *)storage;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        in6->sin6_addr = group || (receives && any) ? in6addr_any : in6addr_loopback;
        if (mapped && !any) inet_pton(AF_INET6, "::ffff:127.0.0.1", &in6->sin6_addr);
        return sizeof *in6;
    }
    struct sockaddr_in *in = (void *)storage;
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    in->sin_addr.s_addr = htonl(group || (receives && any) ? INADDR_ANY : INADDR_LOOPBACK);
    return sizeof *in;
}

static int port_of(int fd) {
    struct sockaddr_storage storage;
    socklen_t size = sizeof storage;
    if (getsockname(fd, (struct sockaddr *)&storage, &size)) fail("getsockname");
    return ntohs(((struct sockaddr_in *)&storage)->sin_port);
}

static void set(int fd, int level, int name, const void *value, socklen_t size) {
    if (setsockopt(fd, level, name, value, size)) fail("setsockopt");
}

static int receiver(int member, int port) {
    struct sockaddr_storage here, there;
    int on = 1, off = 0, large = 16 << 20;
    int fd = socket(ipv6 || mapped ? AF_INET6 : AF_INET, SOCK_DGRAM | (members > 1 ? SOCK_CLOEXEC : 0), 0);
    if (fd < 0) fail("socket");
    if (!small && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large)) set(fd, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    if (mapped) set(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (members > 1) set(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (device) set(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3);
    if (is("recvmsg") && !ipv6) set(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    if (is("recv_timed") || is("recv_short")) {
        struct timeval time = {60, 0}, moment = {0, 20000};
        set(fd, SOL_SOCKET, SO_RCVTIMEO, is("recv_short") ? &moment : &time, sizeof time);
    }
    if (group && ipv6) {
        struct ipv6_mreq request = {.ipv6mr_interface = multicast_device()};
        inet_pton(AF_INET6, "ff15::5343", &request.ipv6mr_multiaddr);
        set(fd, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &request, sizeof request);
    } else if (group) {
        struct ip_mreqn request = {.imr_multiaddr.s_addr = htonl(0xef015343), .imr_ifindex = multicast_device()};
        set(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request);
    }
    socklen_t size = address(&here, 1, port);
    if (bind(fd, (struct sockaddr *)&here, size)) fail("bind");
    if (connected) {
        size = address(&there, 0, shared->sender_ports[0]);
        if (connect(fd, (struct sockaddr *)&there, size)) fail("connect");
    }
    if (by_program && member == 0) {
        struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0), BPF_STMT(BPF_RET | BPF_A, 0)};
        struct sock_fprog program = {2, code};
        set(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program);
    }
    return fd;
}

// The one that is worked on.
static int victim(void) {
    static struct place places[PLACES];
    int self = getpid(), extra = -1, worker = 0;
    if (with_signals) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
        sigaction(SIGRTMIN, &action, NULL);
        if (child_of(self) == 0) {
            while (!shared->ready) nap(100);
            for (int i = 0;; i++) {
                // The queue can be full: then it tries again.
                while (sigqueue(self, SIGRTMIN, (union sigval){.sival_int = i}) && errno == EAGAIN) nap(100);
                nap(100);
            }
        }
    }
    for (int i = 0; i < members; i++) {
        socks[i] = receiver(i, i ? shared->port : 0);
        shared->port = port_of(socks[i]);
        shared->fds[shared->fd_count++] = socks[i];
    }
    if (two) {
        extra = fcntl(socks[0], F_DUPFD_CLOEXEC, 40);
        shared->fds[shared->fd_count++] = extra;
    }
    shared->pids[0] = self;
    for (int i = 1; i < workers; i++) {
        int child = child_of(self);
        if (child == 0) {
            worker = i;
            break;
        }
        shared->pids[i] = child;
    }
    int in_epoll = is("epoll_wait") || is("epoll_timed") || is("epoll_short") || is("epoll_pwait") || is("edge") || is("oneshot") || disarmed();
    int alone = is("exclusive") || is("several") || is("nested") || is("nested_edge");
    for (int i = 0; i < threads * members; i++) {
        struct place *place = &places[i];
        int member = i % members;
        *place = (struct place){worker * threads * members + i, worker, member, socks[member], -1, -1};
        if (two && i % 2) place->fd = extra;
        if (alone || (in_epoll && i < members)) make_epoll(place);
        else if (in_epoll) place->epoll = places[member].epoll;
    }
    // One instance, two descriptors of one socket in it.
    if (two && in_epoll) watch(places[0].epoll, EPOLL_CTL_ADD, extra, events_of());
    if (filtered) filter();
    // Only the first thread gets the signals, so that their order can be told.
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_t new;
    for (int i = leaderless ? 0 : 1; i < threads * members; i++)
        if (pthread_create(&new, NULL, thread, &places[i])) fail("pthread_create");
    if ((churn || forks || spawns) && pthread_create(&new, NULL, churning, NULL)) fail("pthread_create");
    if (leaderless) pthread_exit(NULL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    thread(&places[0]);
    return 0;
}

// --- sending ---

static int sender(int flow) {
    struct sockaddr_storage here;
    int fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), index = multicast_device();
    socklen_t size = address(&here, 0, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, size)) fail("sender");
    if (group && ipv6) set(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &index, sizeof index);
    if (group && !ipv6) {
        struct ip_mreqn request = {.imr_ifindex = index};
        set(fd, IPPROTO_IP, IP_MULTICAST_IF, &request, sizeof request);
    }
    shared->sender_ports[flow] = port_of(fd);
    return fd;
}

static void send_next(void) {
    uint64_t number = shared->sent;
    struct datagram datagram = {.mark = MARK, .number = number, .flow = number % flows, .member = by_program ? number / flows % members : 0};
    // An ICMP error is told by the next one to send.
    while (send(out[datagram.flow], &datagram, sizeof datagram, 0) < 0) {
        if (errno == ENOBUFS || errno == EINTR) continue;
        shared->last_error = errno;
        if (shared->errors++ > 1000) return;
    }
    shared->sent++;
}

static void *sending(void *unused) {
    const long window = small ? SMALL_WINDOW : WINDOW;
    double start = 0;
    unsigned long first = 0;
    int rate = 0;
    for (;;) {
        if (shared->rate != rate) {
            rate = shared->rate;
            start = now(), first = shared->sent;
        }
        shared->pace = rate;
        double due = rate * (now() - start);
        long waits = shared->sent - shared->got;
        if (shared->sent < MOST && shared->sent - first < due && waits < window) {
            send_next();
            continue;
        }
        // What could not be sent in time is not made up for.
        if (waits >= window) start = now(), first = shared->sent;
        nap(50);
    }
    return NULL;
}

static void set_rate(int rate) {
    shared->rate = rate;
    while (shared->pace != rate) nap(100);
}

static void verdict(unsigned long sent, const char *asleep) {
    unsigned long lost = 0, doubled = 0, first = 0, again = 0;
    for (unsigned long i = 0; i < sent; i++) {
        if (!shared->seen[i] && !lost++) first = i;
        if (shared->seen[i] > 1 && !doubled++) again = i;
    }
    printf("{\"sent\": %lu, \"lost\": %lu, \"first_lost\": %lu, \"doubled\": %lu, \"first_doubled\": %lu, \"disordered\": %lu, \"errors\": %lu, \"last_error\": %d, ",
           sent, lost, first, doubled, again, shared->disordered, shared->errors, shared->last_error);
    printf("\"strayed\": %lu, \"homes\": [", shared->strayed);
    for (int i = 0; i < flows; i++) printf("%s%d", i ? ", " : "", shared->home[i]);
    printf("], \"signals\": %lu, \"cut\": %lu, \"asleep\": \"%s\", \"wrong\": \"%s\"}\n", shared->handled, shared->cut, asleep, shared->wrong);
    fflush(stdout);
}

static void press(void) {
    if (disarmed() && write(arm[1], "", 1) != 1) complain("arm", 0);
    if (is("recvmmsg_two") && !shared->rate && shared->got < shared->sent) send_next();
}

// Until all that was sent by now has come, or nothing comes any more; says how much that is.
static unsigned long settle(void) {
    static unsigned long come;
    unsigned long sent = shared->sent, got = shared->got;
    double end = now() + 5;
    for (;;) {
        while (come < sent && shared->seen[come]) come++;
        // Those are lost: who waits again waits for what comes later.
        if (now() > end) come = sent;
        if (come == sent) return sent;
        if (shared->got != got && !shared->rate) got = shared->got, end = now() + 5;
        press();
        nap(200);
    }
}

// Has it fire, so that it is disarmed and stays so.
static void disarm(void) {
    double end = now() + 5;
    int pressed = 1;
    while (pressed && now() < end)
        if (ioctl(arm[0], FIONREAD, &pressed) == 0 && pressed) nap(200);
    if (shared->inside) send_next();
    while ((shared->inside || shared->got < shared->sent) && now() < end) nap(200);
}

static void check(void) {
    static char asleep[4 * PLACES];
    int all = threads * workers * members, running = shared->rate;
    unsigned long enough = shared->sent + 2 * flows;
    asleep[0] = 0;
    shared->parked = 0;
    int wave = ++shared->wave;
    if (!running) set_rate(5000);
    double end = now() + 5;
    while ((shared->parked < all || shared->sent < enough) && now() < end) {
        press();
        nap(200);
    }
    for (int i = 0, n = 0; i < all; i++)
        if (shared->awake[i] != wave) n += sprintf(asleep + n, "%d ", i);
    // Lets go whoever waits for the others.
    shared->parked = all;
    if (!running) set_rate(0);
    unsigned long sent = settle();
    if (!running && disarmed()) disarm();
    verdict(sent, asleep);
}

int main(int count, char **words) {
    struct {
        const char *name;
        int *value;
    } flags[] = {{"ipv6", &ipv6}, {"mapped", &mapped}, {"any", &any}, {"connected", &connected}, {"group", &group},
                 {"device", &device}, {"by_program", &by_program}, {"small", &small}, {"two", &two}, {"tables", &tables},
                 {"signals", &with_signals}, {"filtered", &filtered}, {"leaderless", &leaderless}, {"churn", &churn}, {"forks", &forks}, {"spawns", &spawns}};
    for (int i = 2; i < count; i++) {
        int known = 0;
        for (unsigned j = 0; j < sizeof flags / sizeof *flags; j++)
            if (!strcmp(words[i], flags[j].name)) *flags[j].value = known = 1;
        known |= sscanf(words[i], "threads=%d", &threads) == 1 || sscanf(words[i], "workers=%d", &workers) == 1 ||
                 sscanf(words[i], "members=%d", &members) == 1 || sscanf(words[i], "flows=%d", &flows) == 1;
        if (!known) return fprintf(stderr, "%s?\n", words[i]), 2;
    }
    call = words[1];
    // Whatever it was started with.
    close_range(3, ~0U, 0);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || pipe(arm)) fail("start");
    for (int i = 0; i < FLOWS; i++) shared->home[i] = -1;
    for (int i = 0; i < flows; i++) out[i] = sender(i);
    int self = getpid();
    if (child_of(self) == 0) {
        for (int i = 0; i < flows; i++) close(out[i]);
        close(arm[1]);
        return victim();
    }
    while (shared->ready < threads * workers * members) {
        if (waitpid(-1, NULL, WNOHANG) > 0) return 2;
        nap(200);
    }
    target_size = address(&target, 0, shared->port);
    if (group && ipv6) inet_pton(AF_INET6, "ff15::5343", &((struct sockaddr_in6 *)&target)->sin6_addr);
    if (group && !ipv6) ((struct sockaddr_in *)&target)->sin_addr.s_addr = htonl(0xef015343);
    for (int i = 0; i < flows; i++)
        if (connect(out[i], (struct sockaddr *)&target, target_size)) fail("connect");
    pthread_t new;
    if (pthread_create(&new, NULL, sending, NULL)) fail("pthread_create");
    printf("{\"port\": %d, \"pids\": [", shared->port);
    for (int i = 0; i < workers; i++) printf("%s%d", i ? ", " : "", shared->pids[i]);
    printf("], \"fds\": [");
    for (int i = 0; i < shared->fd_count; i++) printf("%s%d", i ? ", " : "", shared->fds[i]);
    printf("], \"signal\": %d}\n", with_signals ? SIGRTMIN : 0);
    fflush(stdout);
    char line[100];
    int rate;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "start %d", &rate) == 1) set_rate(rate);
        else if (!strncmp(line, "stop", 4)) {
            set_rate(0);
            unsigned long sent = settle();
            if (disarmed()) disarm();
            verdict(sent, "");
        } else check();
    }
    return 0;
}
