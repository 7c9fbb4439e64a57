//! Where `struct sk_buff` and what hangs on it keep their members, and one buffer as it was read.

use std::io;

use super::btf::{Btf, BtfError, Field};
use super::layout::offset;
use super::reader::damaged;

/// What the queues need of the kernel's layout.
#[derive(Debug)]
pub struct Buffers {
    pub skb: Skb,
    pub shared: Shared,
    pub fragment: Fragment,
    pub control: Control,
    pub error: ErrorControl,
    pub heads: Heads,
    pub cork: Cork,
    pub options: Options,
    /// Without it page fragments are verified by their contents alone.
    pub slab: Option<Slab>,
    /// The bytes of a `struct page`.
    pub page_size: usize,
}

/// `struct sk_buff`.
#[derive(Debug)]
pub struct Skb {
    /// The bytes from the beginning that hold all of the fields.
    pub extent: usize,
    pub next: Field,
    pub previous: Field,
    pub time: Field,
    /// 0: the time is real time. Since 6.10; before, whether it is a monotonic delivery time.
    pub clock: Option<Field>,
    pub length: Field,
    pub paged_length: Field,
    pub interface: Field,
    pub mark: Field,
    pub priority: Field,
    /// Which version of IP it came by, in network order.
    pub protocol: Field,
    pub transport_header: Field,
    pub network_header: Field,
    pub end: Field,
    pub head: Field,
    pub data: Field,
    pub checksum_state: Field,
    pub checksum_valid: Field,
    /// The bytes it counts for in the limits of its socket.
    pub true_size: Field,
    pub peeked: Field,
    /// What a firewall has called it (CONFIG_NETWORK_SECMARK).
    pub security_mark: Option<Field>,
    /// Fragments that no processor can read (device memory, 6.12).
    pub unreadable: Option<Field>,
}

/// `struct skb_shared_info`, which lies at `head + end`.
#[derive(Debug)]
pub struct Shared {
    pub extent: usize,
    pub fragments: Field,
    pub segment_size: Field,
    pub list: Field,
    /// The time that the hardware gave it.
    pub hardware_time: Option<Field>,
    /// Where the array of fragments begins.
    pub array: usize,
}

/// `skb_frag_t`: `struct skb_frag`, or `struct bio_vec` before 6.10.
#[derive(Debug)]
pub struct Fragment {
    pub size: usize,
    pub page: Field,
    pub length: Field,
    pub offset: Field,
}

/// `skb->cb` of a datagram in a receive queue (`PKTINFO_SKB_CB`, `IPCB`, `SOCK_SKB_CB`) and the
/// scratch that UDP keeps in `skb->dev`; offsets from the buffer.
#[derive(Debug)]
pub struct Control {
    pub interface: Field,
    pub address: Field,
    pub fragment_size: Option<Field>,
    /// Of a datagram that came by IPv6 (`IP6CB`).
    pub interface6: Option<Field>,
    pub fragment_size6: Option<Field>,
    pub drops: Option<Field>,
    pub checked: Option<Field>,
}

/// `skb->cb` of an entry of an error queue (`SKB_EXT_ERR`); offsets from the buffer.
#[derive(Debug)]
pub struct ErrorControl {
    pub error: Field,
    pub origin: Field,
    pub kind: Field,
    pub code: Field,
    pub info: Field,
    pub data: Field,
    pub address: Field,
    pub port: Field,
    /// Since 4.11.
    pub statistics: Option<Field>,
}

/// Where the queues begin in a socket: `struct sk_buff_head`.
#[derive(Debug)]
pub struct Heads {
    pub receive: usize,
    pub error: usize,
    pub write: usize,
    pub reader: Option<usize>,
    pub first: Field,
    pub last: Field,
    pub length: Field,
    /// The bytes of a head that count, without its lock.
    pub extent: usize,
}

/// `inet_sock.cork`.
#[derive(Debug)]
pub struct Cork {
    /// The whole `struct inet_cork_full`.
    pub whole: Field,
    pub flags: Field,
    pub options: Field,
    pub ttl: Field,
    pub tos: Field,
    pub priority: Field,
    pub segment_size: Field,
    /// The bytes of a fragment at most.
    pub fragment_size: Field,
    pub mark: Option<Field>,
    pub transmit_time: Option<Field>,
    /// Which time stamps are wanted when it is sent.
    pub stamps: Field,
    pub source: Field,
    pub destination: Field,
    /// The destination when there are options.
    pub last_hop: Field,
    pub destination_port: Field,
    pub route: Route,
    /// Of data for IPv6.
    pub ipv6: Option<Cork6>,
}

/// What a cork for IPv6 has besides: `struct flowi6`, and `ipv6_pinfo.cork`.
#[derive(Debug)]
pub struct Cork6 {
    /// In `struct inet_sock`.
    pub source: usize,
    pub destination: usize,
    pub port: Field,
    pub flow: Field,
    /// The device that it was to leave by; 0: any.
    pub device: Field,
    /// In `struct ipv6_pinfo`: the whole `struct inet6_cork`.
    pub whole: Field,
    pub options: Field,
    pub hop_limit: Field,
    pub traffic_class: Field,
    pub dont_fragment: Field,
    /// In `struct ipv6_txoptions`, which has so many bytes: hop-by-hop, destination before the routing
    /// header, routing, destination.
    pub headers: [Field; 4],
    pub headers_extent: usize,
}

/// What a cork says of its route: `struct rtable`.
#[derive(Debug)]
pub struct Route {
    /// In the cork.
    pub route: Field,
    pub device: Field,
    /// Not 0: by a gateway.
    pub gateway: Field,
    /// In `struct net_device`, as the next one.
    pub index: Field,
    pub mtu: Field,
}

/// `struct ip_options`.
#[derive(Debug)]
pub struct Options {
    pub size: usize,
    pub length: Field,
    pub first_hop: Field,
    pub source_route: Field,
    pub record_route: Field,
    pub time_stamp: Field,
    pub record_address: Field,
    pub stamp_time: Field,
    pub stamp_address: Field,
}

/// From a sock to the cache it was allocated from, by two ways.
#[derive(Debug)]
pub struct Slab {
    pub creator: Field,
    pub proto_slab: usize,
    pub compound_head: usize,
    pub slab_cache: usize,
}

impl Buffers {
    pub fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let control = offset(btf, "sk_buff", "cb")?;
        Ok(Self {
            skb: Skb::of(btf)?,
            shared: Shared::of(btf)?,
            fragment: Fragment::of(btf)?,
            control: Control::of(btf, control)?,
            error: ErrorControl::of(btf, control)?,
            heads: Heads::of(btf)?,
            cork: Cork::of(btf)?,
            options: Options::of(btf)?,
            slab: Slab::of(btf).ok(),
            page_size: btf.size("page")?,
        })
    }
}

/// The bytes from the beginning of a structure that hold `fields`, in whole words.
fn extent(fields: &[Field]) -> usize {
    let ends = fields.iter().map(|field| field.offset + field.size);
    ends.max().unwrap_or(0).next_multiple_of(8)
}

impl Skb {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("sk_buff", path);
        let clock = field("tstamp_type").or_else(|_| field("mono_delivery_time"));
        let control = field("cb")?;
        let mut skb = Self {
            extent: 0,
            next: field("next")?,
            previous: field("prev")?,
            time: field("tstamp")?,
            clock: clock.ok(),
            length: field("len")?,
            paged_length: field("data_len")?,
            interface: field("skb_iif")?,
            mark: field("mark")?,
            priority: field("priority")?,
            protocol: field("protocol")?,
            transport_header: field("transport_header")?,
            network_header: field("network_header")?,
            end: field("end")?,
            head: field("head")?,
            data: field("data")?,
            checksum_state: field("ip_summed")?,
            checksum_valid: field("csum_valid")?,
            true_size: field("truesize")?,
            peeked: field("peeked")?,
            security_mark: field("secmark").ok(),
            unreadable: field("unreadable").ok(),
        };
        let flags = [skb.clock, skb.unreadable, skb.security_mark];
        let flags = flags.into_iter().flatten();
        let mut fields = vec![control, skb.mark, skb.network_header, skb.transport_header];
        fields.extend([skb.end, skb.head, skb.data, skb.interface, skb.priority]);
        fields.extend([skb.time, skb.checksum_state, skb.checksum_valid]);
        fields.extend([skb.true_size, skb.peeked, skb.protocol]);
        fields.extend(flags);
        skb.extent = extent(&fields);
        Ok(skb)
    }
}

impl Shared {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("skb_shared_info", path);
        let (fragments, segment_size) = (field("nr_frags")?, field("gso_size")?);
        let list = field("frag_list")?;
        let hardware_time = field("hwtstamps.hwtstamp").ok();
        let mut fields = vec![fragments, segment_size, list];
        fields.extend(hardware_time);
        Ok(Self {
            extent: extent(&fields),
            hardware_time,
            fragments,
            segment_size,
            list,
            array: offset(btf, "skb_shared_info", "frags")?,
        })
    }
}

impl Fragment {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Self::named(btf, "skb_frag", ["netmem", "len", "offset"])
            .or_else(|_| Self::named(btf, "bio_vec", ["bv_page", "bv_len", "bv_offset"]))
    }

    fn named(btf: &Btf<'_>, name: &str, members: [&str; 3]) -> Result<Self, BtfError> {
        let [page, length, offset] = members;
        Ok(Self {
            size: btf.size(name)?,
            page: btf.field(name, page)?,
            length: btf.field(name, length)?,
            offset: btf.field(name, offset)?,
        })
    }
}

/// A member of a structure that begins at `base`.
fn inside(base: usize, field: Field) -> Field {
    Field {
        offset: base + field.offset,
        ..field
    }
}

impl Control {
    fn of(btf: &Btf<'_>, base: usize) -> Result<Self, BtfError> {
        let field = |name, path| Ok(inside(base, btf.field(name, path)?));
        let end = base + btf.field("sk_buff", "cb")?.size;
        let drops = btf.size("sock_skb_cb").and_then(|size| {
            let count = btf.field("sock_skb_cb", "dropcount")?;
            Ok(inside(end.saturating_sub(size), count))
        });
        let scratch = offset(btf, "sk_buff", "dev")?;
        let checked = btf.field("udp_dev_scratch", "csum_unnecessary");
        Ok(Self {
            interface: field("in_pktinfo", "ipi_ifindex")?,
            address: field("in_pktinfo", "ipi_spec_dst")?,
            fragment_size: field("inet_skb_parm", "frag_max_size").ok(),
            interface6: field("inet6_skb_parm", "iif").ok(),
            fragment_size6: field("inet6_skb_parm", "frag_max_size").ok(),
            drops: drops.ok(),
            checked: checked.ok().map(|field| inside(scratch, field)),
        })
    }
}

impl ErrorControl {
    fn of(btf: &Btf<'_>, base: usize) -> Result<Self, BtfError> {
        let field = |path| Ok(inside(base, btf.field("sock_exterr_skb", path)?));
        Ok(Self {
            error: field("ee.ee_errno")?,
            origin: field("ee.ee_origin")?,
            kind: field("ee.ee_type")?,
            code: field("ee.ee_code")?,
            info: field("ee.ee_info")?,
            data: field("ee.ee_data")?,
            address: field("addr_offset")?,
            port: field("port")?,
            statistics: field("opt_stats").ok(),
        })
    }
}

impl Heads {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let start = offset(btf, "sock", "sk_receive_queue")?;
        let field = |path| {
            let field = btf.field("sock", path)?;
            Ok(Field {
                offset: field.offset.saturating_sub(start),
                ..field
            })
        };
        let (first, last) = (
            field("sk_receive_queue.next")?,
            field("sk_receive_queue.prev")?,
        );
        let length = field("sk_receive_queue.qlen")?;
        Ok(Self {
            receive: start,
            error: offset(btf, "sock", "sk_error_queue")?,
            write: offset(btf, "sock", "sk_write_queue")?,
            reader: offset(btf, "udp_sock", "reader_queue").ok(),
            first,
            last,
            length,
            extent: length.offset + length.size,
        })
    }
}

impl Cork {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("inet_sock", path);
        Ok(Self {
            whole: field("cork")?,
            flags: field("cork.base.flags")?,
            options: field("cork.base.opt")?,
            ttl: field("cork.base.ttl")?,
            tos: field("cork.base.tos")?,
            priority: field("cork.base.priority")?,
            segment_size: field("cork.base.gso_size")?,
            fragment_size: field("cork.base.fragsize")?,
            mark: field("cork.base.mark").ok(),
            transmit_time: field("cork.base.transmit_time").ok(),
            stamps: field("cork.base.tx_flags")?,
            source: field("cork.fl.u.ip4.saddr")?,
            destination: field("cork.fl.u.ip4.daddr")?,
            last_hop: field("cork.base.addr")?,
            destination_port: field("cork.fl.u.ip4.uli.ports.dport")?,
            route: Route::of(btf)?,
            ipv6: Cork6::of(btf).ok(),
        })
    }
}

impl Cork6 {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let part = |path| btf.field("ipv6_pinfo", path);
        let header = |path| btf.field("ipv6_txoptions", path);
        let flow = |path: &str| btf.field("inet_sock", &format!("cork.fl.u.ip6.{path}"));
        Ok(Self {
            source: flow("saddr")?.offset,
            destination: flow("daddr")?.offset,
            port: flow("uli.ports.dport")?,
            flow: flow("flowlabel")?,
            device: flow("__fl_common.flowic_oif")?,
            whole: part("cork")?,
            options: part("cork.opt")?,
            hop_limit: part("cork.hop_limit")?,
            traffic_class: part("cork.tclass")?,
            dont_fragment: part("cork.dontfrag")?,
            headers: [
                header("hopopt")?,
                header("dst0opt")?,
                header("srcrt")?,
                header("dst1opt")?,
            ],
            headers_extent: btf.size("ipv6_txoptions")?,
        })
    }
}

impl Route {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("rtable", path);
        Ok(Self {
            route: btf.field("inet_sock", "cork.base.dst")?,
            device: field("dst.dev")?,
            // The family is also set where only the MTU of a path is remembered (`rt_bind_exception`).
            gateway: field("rt_uses_gateway").or_else(|_| field("rt_gw_family"))?,
            index: btf.field("net_device", "ifindex")?,
            mtu: btf.field("net_device", "mtu")?,
        })
    }
}

impl Options {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let field = |path| btf.field("ip_options", path);
        Ok(Self {
            size: btf.size("ip_options")?,
            length: field("optlen")?,
            first_hop: field("faddr")?,
            source_route: field("srr")?,
            record_route: field("rr")?,
            time_stamp: field("ts")?,
            record_address: field("rr_needaddr")?,
            stamp_time: field("ts_needtime")?,
            stamp_address: field("ts_needaddr")?,
        })
    }
}

impl Slab {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Ok(Self {
            creator: btf.field("sock", "sk_prot_creator")?,
            proto_slab: offset(btf, "proto", "slab")?,
            compound_head: offset(btf, "page", "compound_head")?,
            slab_cache: offset(btf, "slab", "slab_cache")?,
        })
    }
}

/// One buffer, as the walk copied it.
#[derive(Clone, Copy, Debug)]
pub struct Buffer<'a> {
    pub layout: &'a Buffers,
    /// Its address in the kernel.
    pub address: u64,
    pub skb: &'a [u8],
    pub shared: &'a [u8],
    /// The bytes from `base` on; only what lies in the buffer means something.
    pub window: &'a [u8],
    /// The kernel address of the window.
    pub base: u64,
}

impl<'a> Buffer<'a> {
    /// A member of the buffer.
    pub fn get(&self, field: Field) -> io::Result<u64> {
        field.value(self.skb).ok_or_else(damaged)
    }

    /// A member that some kernels have; 0 where there is none.
    pub fn optional(&self, field: Option<Field>) -> io::Result<u64> {
        field.map_or(Ok(0), |field| self.get(field))
    }

    /// A member of its `skb_shared_info`.
    pub fn shared(&self, field: Field) -> io::Result<u64> {
        field.value(self.shared).ok_or_else(damaged)
    }

    /// The next one of the list.
    pub fn next(&self) -> io::Result<u64> {
        self.get(self.layout.skb.next)
    }

    /// All bytes that belong to it.
    pub fn length(&self) -> io::Result<usize> {
        Ok(self.get(self.layout.skb.length)? as usize)
    }

    /// The bytes at `data`; the others are in fragments. None: the numbers cannot be.
    pub fn linear(&self) -> io::Result<Option<usize>> {
        let paged = self.get(self.layout.skb.paged_length)? as usize;
        Ok(self.length()?.checked_sub(paged))
    }

    /// The bytes at `data` that the window has.
    pub fn seen(&self) -> io::Result<&'a [u8]> {
        let start = self.get(self.layout.skb.data)?.wrapping_sub(self.base);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let rest = self.window.get(start..).unwrap_or_default();
        let linear = self.linear()?.unwrap_or(0).min(rest.len());
        Ok(rest.get(..linear).unwrap_or_default())
    }

    /// Whether the other copy shows the same buffer with the same contents. The link to the next
    /// one does not count: behind the last one another may arrive.
    pub fn is(&self, other: &Self) -> io::Result<bool> {
        let next = self.layout.skb.next;
        let outside = |raw: &'a [u8]| (raw.get(..next.offset), raw.get(next.offset + next.size..));
        Ok(outside(self.skb) == outside(other.skb)
            && self.shared == other.shared
            && self.used()? == other.used()?)
    }

    /// The part of the window that belongs to the buffer: headers, and what is seen of the data.
    fn used(&self) -> io::Result<&'a [u8]> {
        let start = self.get(self.layout.skb.data)?.wrapping_sub(self.base);
        let start = usize::try_from(start).unwrap_or(0);
        let end = start.saturating_add(self.linear()?.unwrap_or(0));
        Ok(self
            .window
            .get(..end.min(self.window.len()))
            .unwrap_or_default())
    }
}
