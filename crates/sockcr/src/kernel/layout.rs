//! Where the running kernel keeps what the programs and the decoder need, asked once.

use std::sync::OnceLock;

use sockcr_sys::bpf::{KERNEL_TYPES, KernelTypes};

use super::btf::{Btf, BtfError, Field, Kind};
use super::buffer::Buffers;
use super::inet6::Inet6;
use super::{Reason, Unavailable, permitted};

/// Every structure, function and enumeration that is asked for below.
const WANTED: &[(Kind, &str)] = &[
    (Kind::Structure, "task_struct"),
    (Kind::Structure, "signal_struct"),
    (Kind::Structure, "pid"),
    (Kind::Structure, "upid"),
    (Kind::Structure, "files_struct"),
    (Kind::Structure, "fdtable"),
    (Kind::Structure, "file"),
    (Kind::Structure, "cred"),
    (Kind::Structure, "user_namespace"),
    (Kind::Structure, "cgroup"),
    (Kind::Structure, "kernfs_node"),
    (Kind::Structure, "socket"),
    (Kind::Structure, "socket_alloc"),
    (Kind::Structure, "net"),
    (Kind::Structure, "sock"),
    (Kind::Structure, "inet_sock"),
    (Kind::Structure, "udp_sock"),
    (Kind::Structure, "udp6_sock"),
    (Kind::Structure, "raw_sock"),
    (Kind::Structure, "raw6_sock"),
    (Kind::Structure, "ipv6_pinfo"),
    (Kind::Structure, "ipv6_mc_socklist"),
    (Kind::Structure, "ipv6_ac_socklist"),
    (Kind::Structure, "ipv6_txoptions"),
    (Kind::Structure, "ipv6_fl_socklist"),
    (Kind::Structure, "ip6_flowlabel"),
    (Kind::Structure, "numa_drop_counters"),
    (Kind::Structure, "sock_reuseport"),
    (Kind::Structure, "ip_mc_socklist"),
    (Kind::Structure, "bpf_iter__task_file"),
    (Kind::Structure, "bpf_iter_meta"),
    (Kind::Structure, "sk_buff"),
    (Kind::Structure, "skb_shared_info"),
    (Kind::Structure, "skb_frag"),
    (Kind::Structure, "bio_vec"),
    (Kind::Structure, "in_pktinfo"),
    (Kind::Structure, "inet_skb_parm"),
    (Kind::Structure, "inet6_skb_parm"),
    (Kind::Structure, "sock_skb_cb"),
    (Kind::Structure, "udp_dev_scratch"),
    (Kind::Structure, "sock_exterr_skb"),
    (Kind::Structure, "ip_options"),
    (Kind::Structure, "rtable"),
    (Kind::Structure, "net_device"),
    (Kind::Structure, "proto"),
    (Kind::Structure, "slab"),
    (Kind::Structure, "page"),
    (Kind::Structure, "sk_filter"),
    (Kind::Structure, "bpf_prog"),
    (Kind::Structure, "bpf_prog_aux"),
    (Kind::Structure, "sock_fprog_kern"),
    (Kind::Enumeration, "sock_flags"),
    (Kind::Enumeration, "pid_type"),
    (Kind::Function, "bpf_rcu_read_lock"),
    (Kind::Function, "bpf_rcu_read_unlock"),
    (Kind::Function, "bpf_iter_num_new"),
    (Kind::Function, "bpf_iter_num_next"),
    (Kind::Function, "bpf_iter_num_destroy"),
    (Kind::Function, "bpf_iter_task_file"),
];

/// The whole answer.
#[derive(Debug)]
pub struct Layout {
    pub path: Path,
    pub sock: Sock,
    pub inet: Inet,
    pub udp: Udp,
    /// The bytes of a `struct raw_sock`.
    pub raw_size: usize,
    /// Where the kernel has IPv6.
    pub inet6: Option<Inet6>,
    /// Since 6.18.
    pub drop_counters: Option<DropCounters>,
    pub reuseport: Reuseport,
    pub membership: Membership,
    pub program: Result<Program, BtfError>,
    pub functions: Functions,
    /// Who uses an open file. Its absence leaves the rest usable.
    pub file: Result<File, BtfError>,
    /// Who connected a Unix socket. Its absence leaves the rest usable.
    pub peer: Result<Peer, BtfError>,
    /// What the queues need besides. Its absence leaves the rest usable.
    pub buffers: Result<Buffers, BtfError>,
    /// What the iterator needs besides. Its absence leaves the reader usable.
    pub iterator: Result<Iterator, BtfError>,
}

/// From the calling task to a socket, and back.
#[derive(Debug)]
pub struct Path {
    pub task_files: usize,
    pub files_table: usize,
    pub table_limit: usize,
    pub table_files: usize,
    pub file_private: usize,
    pub socket_file: usize,
    pub socket_sock: usize,
}

/// `struct file`.
#[derive(Debug)]
pub struct File {
    pub references: Field,
    /// The count is one less than there are (`file_ref_t`, since 6.13).
    pub counts_from_zero: bool,
    /// The list of its registrations in epoll instances.
    pub watchers: Field,
    /// From a `struct sock` to the number of its control group, where the kernel has those (since 5.15).
    pub group: Option<[usize; 3]>,
    /// Who made it: from a `struct file`, and in a `struct cred`.
    pub credentials: usize,
    pub user: Field,
    pub user_group: Field,
}

/// From a `struct sock` to the credentials of its peer (`struct cred`), and in those.
#[derive(Debug)]
pub struct Peer {
    pub credentials: usize,
    pub user: Field,
    pub user_group: Field,
    /// Where the 8 bytes of its effective capabilities are.
    pub effective: usize,
    /// From it to its user namespace, and to the number of that.
    pub namespace: usize,
    pub number: Field,
}

/// `struct sock`.
#[derive(Debug)]
pub struct Sock {
    pub size: usize,
    pub family: Field,
    pub state: Field,
    pub port: Field,
    pub peer_port: Field,
    pub bound_address: Field,
    pub peer_address: Field,
    /// Absent from a kernel without IPv6, as the next one.
    pub bound_address_v6: Option<Field>,
    pub peer_address_v6: Option<Field>,
    pub device: Field,
    pub flags: Field,
    pub cookie: Field,
    pub net: Field,
    pub kind: Field,
    pub protocol: Field,
    pub socket: Field,
    pub user_data: Field,
    pub locks: Field,
    pub error: Field,
    pub shutdown: Field,
    pub drops: Field,
    pub drop_counters: Option<Field>,
    pub sent: Field,
    pub references: Option<Field>,
    pub filter: usize,
    pub receive_queue: Field,
    pub write_queue: Field,
    pub error_queue: Field,
    pub received: Field,
    pub reuseport: Field,
    pub timestamp_key: Option<Field>,
    pub zerocopy_key: Option<Field>,
    pub storage: Option<Field>,
    /// Where it is in the list of those with its address and port.
    pub address_node: usize,
    pub busy_poll_budget: Option<Field>,
    pub policies: Option<Field>,
    pub inode: Option<Field>,
    /// The number of the bit SOCK_TXTIME.
    pub txtime: Option<u32>,
}

/// `struct inet_sock`, which begins with a `struct sock`.
#[derive(Debug)]
pub struct Inet {
    pub size: usize,
    pub source_address: Field,
    pub unicast_ttl: Field,
    pub multicast_index: Field,
    pub multicast_address: Field,
    pub memberships: Field,
}

/// `struct udp_sock`, which begins with a `struct inet_sock`.
#[derive(Debug)]
pub struct Udp {
    pub size: usize,
    pub pending: Field,
    pub length: Field,
    pub encapsulation: Field,
    /// `udp_flags`, and its bits that say which UDPLITE_..._CSCOV was set; since 6.7.
    pub coverage: Option<(Field, [u32; 2])>,
    pub reader_queue: Option<Field>,
}

/// `struct numa_drop_counters`: two counters that add up.
#[derive(Debug)]
pub struct DropCounters {
    pub size: usize,
    pub first: Field,
    pub second: Field,
}

/// `struct sock_reuseport`.
#[derive(Debug)]
pub struct Reuseport {
    pub count: Field,
    pub program: Field,
    /// Where the array of members begins.
    pub members: usize,
}

/// `struct bpf_prog` and the way to it from `sock.sk_filter`.
#[derive(Debug)]
pub struct Program {
    pub of_filter: usize,
    /// The bytes from the beginning that hold `tag`, `aux` and `original`.
    pub extent: usize,
    pub tag: usize,
    pub aux: Field,
    /// The classic program it was made of.
    pub original: Field,
    pub original_extent: usize,
    pub original_length: Field,
    pub original_code: Field,
    /// In `struct bpf_prog_aux`.
    pub id: Field,
    pub name: usize,
}

/// `struct ip_mc_socklist`.
#[derive(Debug)]
pub struct Membership {
    pub next: Field,
    pub group: Field,
    pub address: Field,
    pub interface: Field,
}

/// Kernel functions that programs may call, where this kernel has them.
#[derive(Debug, Default)]
pub struct Functions {
    /// `bpf_rcu_read_lock` and `bpf_rcu_read_unlock` (6.2).
    pub rcu: Option<(u32, u32)>,
    /// `bpf_iter_num_new`, `_next` and `_destroy` (6.4).
    pub count: Option<(u32, u32, u32)>,
}

/// What the iterator over files needs.
#[derive(Debug)]
pub struct Iterator {
    pub function: u32,
    pub meta: usize,
    pub sequence: usize,
    pub task: usize,
    pub descriptor: usize,
    pub file: usize,
    pub net_cookie: usize,
    /// From a `struct socket` to the number of its inode.
    pub socket_inode: usize,
    pub task_pid: usize,
    pub task_signal: usize,
    /// The process's own `struct pid` in `struct signal_struct`.
    pub signal_process: usize,
    pub pid_level: usize,
    pub pid_numbers: usize,
    /// The bytes of one entry of `pid.numbers`, and the number in it.
    pub number_size: usize,
    pub number: usize,
}

/// The layout of the running kernel, read at the first call, if programs may be loaded at all.
pub fn layout() -> Result<&'static Layout, Unavailable> {
    static LAYOUT: OnceLock<Result<Layout, Unavailable>> = OnceLock::new();
    let layout = LAYOUT.get_or_init(|| {
        permitted()?;
        read()
    });
    layout.as_ref().map_err(Clone::clone)
}

/// Reads the type information, whether or not programs may be loaded.
pub fn read() -> Result<Layout, Unavailable> {
    if let Ok(types) = KernelTypes::map() {
        return parse(&types);
    }
    let types = std::fs::read(KERNEL_TYPES);
    parse(&types.map_err(|error| Reason::NoTypes(error.to_string()))?)
}

fn parse(data: &[u8]) -> Result<Layout, Unavailable> {
    Ok(Layout::of(&Btf::parse(data, WANTED)?)?)
}

impl Layout {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Ok(Self {
            path: Path::of(btf)?,
            sock: Sock::of(btf)?,
            inet: Inet::of(btf)?,
            udp: Udp::of(btf)?,
            raw_size: btf.size("raw_sock")?,
            inet6: Inet6::of(btf).ok(),
            drop_counters: DropCounters::of(btf).ok(),
            reuseport: Reuseport::of(btf)?,
            membership: Membership::of(btf)?,
            program: Program::of(btf),
            functions: Functions::of(btf),
            file: File::of(btf),
            peer: Peer::of(btf),
            buffers: Buffers::of(btf),
            iterator: Iterator::of(btf),
        })
    }
}

pub fn offset(btf: &Btf<'_>, structure: &str, path: &str) -> Result<usize, BtfError> {
    btf.field(structure, path).map(|field| field.offset)
}

impl Path {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Ok(Self {
            task_files: offset(btf, "task_struct", "files")?,
            files_table: offset(btf, "files_struct", "fdt")?,
            table_limit: offset(btf, "fdtable", "max_fds")?,
            table_files: offset(btf, "fdtable", "fd")?,
            file_private: offset(btf, "file", "private_data")?,
            socket_file: offset(btf, "socket", "file")?,
            socket_sock: offset(btf, "socket", "sk")?,
        })
    }
}

impl File {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("file", path);
        let since_6_13 = field("f_ref.refcnt");
        Ok(Self {
            counts_from_zero: since_6_13.is_ok(),
            references: since_6_13.or_else(|_| field("f_count"))?,
            watchers: field("f_ep")?,
            group: group(btf).ok(),
            credentials: offset(btf, "file", "f_cred")?,
            user: btf.field("cred", "fsuid.val")?,
            user_group: btf.field("cred", "fsgid.val")?,
        })
    }
}

impl Peer {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Ok(Self {
            credentials: offset(btf, "sock", "sk_peer_cred")?,
            user: btf.field("cred", "euid.val")?,
            user_group: btf.field("cred", "egid.val")?,
            effective: offset(btf, "cred", "cap_effective")?,
            namespace: offset(btf, "cred", "user_ns")?,
            number: btf.field("user_namespace", "ns.inum")?,
        })
    }
}

fn group(btf: &Btf<'_>) -> Result<[usize; 3], BtfError> {
    Ok([
        offset(btf, "sock", "sk_cgrp_data.cgroup")?,
        offset(btf, "cgroup", "kn")?,
        offset(btf, "kernfs_node", "id")?,
    ])
}

impl Sock {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("sock", path);
        Ok(Self {
            size: btf.size("sock")?,
            family: field("__sk_common.skc_family")?,
            state: field("__sk_common.skc_state")?,
            port: field("__sk_common.skc_num")?,
            peer_port: field("__sk_common.skc_dport")?,
            bound_address: field("__sk_common.skc_rcv_saddr")?,
            peer_address: field("__sk_common.skc_daddr")?,
            bound_address_v6: field("__sk_common.skc_v6_rcv_saddr").ok(),
            peer_address_v6: field("__sk_common.skc_v6_daddr").ok(),
            device: field("__sk_common.skc_bound_dev_if")?,
            flags: field("__sk_common.skc_flags")?,
            cookie: field("__sk_common.skc_cookie")?,
            net: field("__sk_common.skc_net")?,
            kind: field("sk_type")?,
            protocol: field("sk_protocol")?,
            socket: field("sk_socket")?,
            user_data: field("sk_user_data")?,
            locks: field("sk_userlocks")?,
            error: field("sk_err")?,
            shutdown: field("sk_shutdown")?,
            drops: field("sk_drops")?,
            drop_counters: field("sk_drop_counters").ok(),
            sent: field("sk_wmem_alloc")?,
            references: field("__sk_common.skc_refcnt").ok(),
            filter: offset(btf, "sock", "sk_filter")?,
            receive_queue: field("sk_receive_queue.qlen")?,
            write_queue: field("sk_write_queue.qlen")?,
            error_queue: field("sk_error_queue.qlen")?,
            received: field("sk_backlog.rmem_alloc")?,
            reuseport: field("sk_reuseport_cb")?,
            timestamp_key: field("sk_tskey").ok(),
            zerocopy_key: field("sk_zckey").ok(),
            storage: field("sk_bpf_storage").ok(),
            address_node: offset(btf, "sock", "__sk_common.skc_portaddr_node")?,
            busy_poll_budget: field("sk_busy_poll_budget").ok(),
            policies: field("sk_policy").ok(),
            inode: field("sk_ino").ok(),
            txtime: btf.constant("sock_flags", "SOCK_TXTIME").ok(),
        })
    }
}

impl Inet {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("inet_sock", path);
        Ok(Self {
            size: btf.size("inet_sock")?,
            source_address: field("inet_saddr")?,
            unicast_ttl: field("uc_ttl")?,
            multicast_index: field("mc_index")?,
            multicast_address: field("mc_addr")?,
            memberships: field("mc_list")?,
        })
    }
}

impl Udp {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("udp_sock", path);
        Ok(Self {
            size: btf.size("udp_sock")?,
            pending: field("pending")?,
            length: field("len")?,
            encapsulation: field("encap_type")?,
            coverage: coverage(btf).ok(),
            reader_queue: field("reader_queue.qlen").ok(),
        })
    }
}

impl DropCounters {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Ok(Self {
            size: btf.size("numa_drop_counters")?,
            first: btf.field("numa_drop_counters", "drops0")?,
            second: btf.field("numa_drop_counters", "drops1")?,
        })
    }
}

impl Reuseport {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Ok(Self {
            count: btf.field("sock_reuseport", "num_socks")?,
            program: btf.field("sock_reuseport", "prog")?,
            members: offset(btf, "sock_reuseport", "socks")?,
        })
    }
}

impl Program {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("bpf_prog", path);
        let (aux, original, tag) = (field("aux")?, field("orig_prog")?, field("tag")?);
        let ends = [aux, original, tag].map(|field| field.offset + field.size);
        Ok(Self {
            of_filter: offset(btf, "sk_filter", "prog")?,
            extent: ends.into_iter().max().unwrap_or(0),
            tag: tag.offset,
            aux,
            original,
            original_extent: btf.size("sock_fprog_kern")?,
            original_length: btf.field("sock_fprog_kern", "len")?,
            original_code: btf.field("sock_fprog_kern", "filter")?,
            id: btf.field("bpf_prog_aux", "id")?,
            name: offset(btf, "bpf_prog_aux", "name")?,
        })
    }
}

impl Membership {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("ip_mc_socklist", path);
        Ok(Self {
            next: field("next_rcu")?,
            group: field("multi.imr_multiaddr")?,
            address: field("multi.imr_address")?,
            interface: field("multi.imr_ifindex")?,
        })
    }

    /// The bytes from the beginning that hold all of the fields.
    pub fn extent(&self) -> usize {
        [self.next, self.group, self.address, self.interface]
            .iter()
            .map(|field| field.offset + field.size)
            .max()
            .unwrap_or(0)
            .next_multiple_of(8)
    }
}

impl Functions {
    fn of(btf: &Btf<'_>) -> Self {
        let function = |name| btf.function(name).ok();
        Self {
            rcu: function("bpf_rcu_read_lock").zip(function("bpf_rcu_read_unlock")),
            count: function("bpf_iter_num_new")
                .zip(function("bpf_iter_num_next"))
                .zip(function("bpf_iter_num_destroy"))
                .map(|((new, next), destroy)| (new, next, destroy)),
        }
    }
}

impl Iterator {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let context = |path| offset(btf, "bpf_iter__task_file", path);
        let inode = offset(btf, "socket_alloc", "vfs_inode.i_ino")?;
        let socket = offset(btf, "socket_alloc", "socket")?;
        let process = btf.constant("pid_type", "PIDTYPE_TGID")?;
        let pids = offset(btf, "signal_struct", "pids")?;
        Ok(Self {
            function: btf.function("bpf_iter_task_file")?,
            meta: context("meta")?,
            sequence: offset(btf, "bpf_iter_meta", "seq")?,
            task: context("task")?,
            descriptor: context("fd")?,
            file: context("file")?,
            net_cookie: offset(btf, "net", "net_cookie")?,
            socket_inode: inode
                .checked_sub(socket)
                .ok_or(BtfError::Damaged("struct socket_alloc"))?,
            task_pid: offset(btf, "task_struct", "thread_pid")?,
            task_signal: offset(btf, "task_struct", "signal")?,
            signal_process: pids + 8 * usize::try_from(process).unwrap_or(0),
            pid_level: offset(btf, "pid", "level")?,
            pid_numbers: offset(btf, "pid", "numbers")?,
            number_size: btf.size("upid")?,
            number: offset(btf, "upid", "nr")?,
        })
    }
}

fn coverage(btf: &Btf<'_>) -> Result<(Field, [u32; 2]), BtfError> {
    let bit = |name: &str| btf.anonymous_constant(name);
    let bits = [
        bit("UDP_FLAGS_UDPLITE_SEND_CC")?,
        bit("UDP_FLAGS_UDPLITE_RECV_CC")?,
    ];
    Ok((btf.field("udp_sock", "udp_flags")?, bits))
}
