//! The bytes of addresses.

use std::net::IpAddr;

/// The four bytes of an IPv4 address.
pub fn octets(address: IpAddr) -> [u8; 4] {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => panic!("{address} is no IPv4 address"),
    }
}
