//! stub
#![allow(missing_docs)]
pub mod number {
    #[derive(Clone, Copy)]
    pub enum Level { Socket, Ip, Udp }
    pub const fn option(level: Level, n: u16) -> u16 { (match level { Level::Socket => 0x100, Level::Ip => 0x180, Level::Udp => 0x200 }) + n }
    pub const INFORMATIONAL: u16 = 0x2000;
    macro_rules! c { ($($n:ident = $v:expr),* $(,)?) => { $(pub const $n: u16 = $v;)* } }
    c!(INODE=1,SOCK_STATE=2,SOCK_TYPE=3,SOCK_FD=4,SOCKOPT_BINDTODEVICE=5,SOCKOPT_BROADCAST=6,SOCKOPT_DEBUG=7,SOCKOPT_DONTROUTE=8,SOCKOPT_KEEPALIVE=9,SOCKOPT_LINGER=10,SOCKOPT_OOBINLINE=11,SOCKOPT_PASSCRED=12,SOCKOPT_PRIORITY=13,SOCKOPT_RCVLOWAT=14,SOCKOPT_RCVTIMEO=15,SOCKOPT_SNDTIMEO=16,SOCKOPT_RCVBUF=17,SOCKOPT_REUSEADDR=18,SOCKOPT_SNDBUF=19,SOCKOPT_TIMESTAMP=20,SOCKOPT_SNDBUF_ULOCK=21,SOCKOPT_RCVBUF_ULOCK=22,IPOPT_OPTIONS=23,IPOPT_PKTINFO=24,IPOPT_RECVTOS=25,IPOPT_RECVTTL=26,IPOPT_RECVOPTS=27,IPOPT_RETOPTS=28,IPOPT_TOS=29,IPOPT_TTL=30,IPOPT_HDRINCL=31,IPOPT_RECVERR=32,IPOPT_MTU_DISCOVER=33,IPOPT_ROUTER_ALERT=34,IPOPT_MULTICAST_TTL=35,IPOPT_MULTICAST_LOOP=36,IPOPT_MEMBERSHIP=37,IPOPT_MREQ=38,IPOPT_MULTICAST_IF=39,UDPOPT_CORK=40,UDP_BIND=41,UDP_BIND_ADDR_ULOCK=42,UDP_BIND_PORT_ULOCK=43,UDP_PEER=44,FAMILY=64,PROTOCOL=65,INTERFACES=66,INTERFACE=67,MEMBERSHIP_FILTER=68,MULTICAST_IFINDEX=69,FILTER=70,DESCRIPTOR_FLAGS=71,OWNER=72,SIGNAL=73,NOT_CARRIED=74,WHAT=75,REASON=76,SHUTDOWN=77,SOURCE=78,ASSUMED=0x2001,REUSEPORT_INDEX=0x2002);
}
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);
pub mod attribute {
    use super::Error;
    pub const NESTED: u16 = 0x8000;
    #[derive(Default)]
    pub struct Writer(Vec<u8>);
    impl Writer {
        pub fn new() -> Writer { Writer::default() }
        pub fn put(&mut self, number: u16, payload: &[u8]) -> Result<(), Error> {
            let length = u16::try_from(payload.len() + 4).map_err(|_| Error(format!("attribute {number} is too long")))?;
            self.0.extend(length.to_ne_bytes()); self.0.extend(number.to_ne_bytes()); self.0.extend(payload);
            while self.0.len() % 4 != 0 { self.0.push(0); }
            Ok(())
        }
        pub fn put_nested(&mut self, number: u16, payload: &[u8]) -> Result<(), Error> { self.put(number | NESTED, payload) }
        pub fn str(&mut self, number: u16, text: &str) -> Result<(), Error> { self.put(number, text.as_bytes()) }
        pub fn nested(&mut self, number: u16, f: impl FnOnce(&mut Writer) -> Result<(), Error>) -> Result<(), Error> {
            let mut w = Writer::new(); f(&mut w)?; self.put_nested(number, &w.finish())
        }
        pub fn finish(self) -> Vec<u8> { self.0 }
    }
    #[derive(Clone, Copy)]
    pub struct Attribute<'a> { pub number: u16, pub nested: bool, pub payload: &'a [u8], pub offset: usize }
    impl<'a> Attribute<'a> {
        pub fn invalid(&self, why: &str) -> Error { Error(format!("attribute {} at {}: {why}", self.number, self.offset)) }
        pub fn as_flag(&self) -> Result<(), Error> { self.as_array::<0>().map(|_| ()) }
        pub fn as_array<const N: usize>(&self) -> Result<[u8; N], Error> { self.payload.try_into().map_err(|_| self.invalid("wrong length")) }
        pub fn as_u8(&self) -> Result<u8, Error> { Ok(self.as_array::<1>()?[0]) }
        pub fn as_u32(&self) -> Result<u32, Error> { Ok(u32::from_ne_bytes(self.as_array()?)) }
        pub fn as_str(&self) -> Result<&'a str, Error> { std::str::from_utf8(self.payload).map_err(|_| self.invalid("utf8")) }
        pub fn nested(&self) -> Attributes<'a> { attributes(self.payload) }
    }
    pub struct Attributes<'a>(&'a [u8], usize);
    pub fn attributes(b: &[u8]) -> Attributes<'_> { Attributes(b, 0) }
    impl<'a> Iterator for Attributes<'a> {
        type Item = Result<Attribute<'a>, Error>;
        fn next(&mut self) -> Option<Self::Item> {
            if self.0.is_empty() { return None; }
            let b = self.0; let bad = || Some(Err(Error("bad attribute".into())));
            if b.len() < 4 { self.0 = &[]; return bad(); }
            let l = u16::from_ne_bytes([b[0], b[1]]) as usize; let n = u16::from_ne_bytes([b[2], b[3]]);
            let end = (l + 3) & !3;
            if l < 4 || end > b.len() { self.0 = &[]; return bad(); }
            self.0 = &b[end..]; let offset = self.1; self.1 += end;
            Some(Ok(Attribute { number: n & 0x3fff, nested: n & NESTED != 0, payload: &b[4..l], offset }))
        }
    }
}
pub mod file {
    use super::Error;
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Command { Dump = 1, Restore = 2, Queue = 3 }
    pub struct Message { pub command: Command, pub socket: u32, pub attributes: Vec<u8> }
    pub struct MessageRef<'a> { pub command: Command, pub socket: u32, pub attributes: &'a [u8] }
    pub const MAX_IMAGE: u64 = 1 << 30;
    pub fn encode(m: &[Message]) -> Result<Vec<u8>, Error> {
        let mut out = b"\x89SOCKCR\n\x01\0\x02\x01\0\0\0\0".to_vec();
        for x in m { out.extend((x.attributes.len() as u32).to_ne_bytes()); out.extend(&x.attributes); }
        Ok(out)
    }
    pub fn decode(b: &[u8]) -> Result<Vec<MessageRef<'_>>, Error> {
        if !super::looks_like_image(b) { return Err(Error("not a sockcr image".into())); }
        let mut b = &b[16..]; let mut v = vec![]; let mut n = 0;
        while b.len() > 4 { let l = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize; n += 1; v.push(MessageRef { command: Command::Dump, socket: n, attributes: &b[4..4 + l] }); b = &b[4 + l..]; }
        Ok(v)
    }
}
pub fn looks_like_image(b: &[u8]) -> bool { b.starts_with(b"\x89SOCKCR\n") }
