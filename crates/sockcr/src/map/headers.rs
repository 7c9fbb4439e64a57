//! The addresses inside IP options and extension headers: where a source route is to go by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `IPOPT_END`, `IPOPT_NOOP`, `IPOPT_LSRR`, `IPOPT_SSRR`
const END: u8 = 0;
const NOTHING: u8 = 1;
const ROUTES: [u8; 2] = [131, 137];
/// The name of the option of a routing header, in corked data.
const IPV6_RTHDR: u8 = 57;
/// `IPV6_SRCRT_TYPE_4`: segment routing.
const SEGMENTS: u8 = 4;

/// The source route in IP options; of one that is damaged nothing (`__ip_options_compile`).
pub(super) fn of_ipv4(mut options: &mut [u8], change: &mut impl FnMut(&mut IpAddr)) {
    loop {
        let length = match *options {
            [NOTHING, ..] => 1,
            [kind, length, ..] if kind != END && length > 1 => usize::from(length),
            _ => return,
        };
        let Some((option, rest)) = options.split_at_mut_checked(length) else {
            return;
        };
        // The kind, the length and a pointer stand before the addresses.
        if let [kind, _, _, route @ ..] = option
            && ROUTES.contains(kind)
        {
            for bytes in route.as_chunks_mut::<4>().0 {
                let mut ip = IpAddr::V4(Ipv4Addr::from(*bytes));
                change(&mut ip);
                if let IpAddr::V4(new) = ip {
                    *bytes = new.octets();
                }
            }
        }
        options = rest;
    }
}

/// The addresses of a routing header, of type 2 one, of type 4 one more than the last segment says, and
/// what else it tells behind them (`ipv6_rt_hdr`, `ipv6_sr_hdr`).
pub(super) fn of_routing(header: &mut [u8], change: &mut impl FnMut(&mut IpAddr)) {
    let [_, units, kind, _, last, _, _, _, addresses @ ..] = header else {
        return;
    };
    let count = match *kind {
        SEGMENTS => usize::from(*last) + 1,
        _ => usize::from(*units) / 2,
    };
    for bytes in addresses.as_chunks_mut::<16>().0.iter_mut().take(count) {
        let mut ip = IpAddr::V6(Ipv6Addr::from(*bytes));
        change(&mut ip);
        if let IpAddr::V6(new) = ip {
            *bytes = new.octets();
        }
    }
}

/// The routing header among the extension headers of corked data.
pub(super) fn of_ipv6(mut headers: &mut [u8], change: &mut impl FnMut(&mut IpAddr)) {
    while let [name, rest @ ..] = headers {
        let length = rest.get(1).map_or(0, |units| (usize::from(*units) + 1) * 8);
        let Some((header, rest)) = rest.split_at_mut_checked(length) else {
            return;
        };
        if *name == IPV6_RTHDR {
            of_routing(header, change);
        }
        headers = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All addresses become the next one.
    fn next(ip: &mut IpAddr) {
        *ip = match *ip {
            IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) + 1).into(),
            IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) + 1).into(),
        };
    }

    #[test]
    fn a_source_route_and_nothing_else() {
        for (options, after) in [
            (
                &[1, 131, 11, 4, 10, 0, 0, 1, 10, 0, 0, 2][..],
                &[1, 131, 11, 4, 10, 0, 0, 2, 10, 0, 0, 3][..],
            ),
            (
                &[148, 4, 0, 0, 137, 7, 4, 10, 0, 0, 1, 0],
                &[148, 4, 0, 0, 137, 7, 4, 10, 0, 0, 2, 0],
            ),
            (&[7, 7, 4, 10, 0, 0, 1, 0], &[7, 7, 4, 10, 0, 0, 1, 0]),
            (&[0, 131, 7, 4, 10, 0, 0, 1], &[0, 131, 7, 4, 10, 0, 0, 1]),
            (&[131, 8, 4, 10, 0, 0, 1], &[131, 8, 4, 10, 0, 0, 1]),
            (&[131, 1], &[131, 1]),
            (&[131], &[131]),
            (&[], &[]),
        ] {
            let mut changed = options.to_vec();
            of_ipv4(&mut changed, &mut next);
            assert_eq!(changed, after, "{options:?}");
        }
    }

    #[test]
    fn the_addresses_of_a_routing_header_and_nothing_else() {
        let address = |last: u8| [&[0xfd; 15][..], &[last]].concat();
        for (head, before, after) in [
            ([0, 2, 2, 1, 0, 0, 0, 0], [1, 9], [2, 9]),
            ([0, 4, 4, 0, 0, 0, 0, 0], [1, 9], [2, 9]),
            ([0, 4, 4, 1, 1, 0, 0, 0], [1, 9], [2, 10]),
            ([0, 4, 4, 1, 200, 0, 0, 0], [1, 9], [2, 10]),
        ] {
            let whole = |lasts: [u8; 2]| [&head[..], &lasts.map(address).concat()].concat();
            let mut changed = whole(before);
            of_routing(&mut changed, &mut next);
            assert_eq!(changed, whole(after), "{head:?}");
        }
        for length in 0..8 {
            of_routing(&mut vec![4; length], &mut next);
        }
    }

    #[test]
    fn the_routing_header_among_others() {
        let route = [&[0, 2, 2, 1, 0, 0, 0, 0][..], &[0xfd; 16]].concat();
        let others = [54, 0, 0, 1, 4, 0, 0, 0, 0];
        let whole = |last: u8| {
            let mut whole = [&others[..], &[IPV6_RTHDR], &route].concat();
            *whole.last_mut().unwrap() = last;
            [&whole, &[59][..], &others[1..]].concat()
        };
        let mut changed = whole(7);
        of_ipv6(&mut changed, &mut next);
        assert_eq!(changed, whole(8));
        for length in 0..changed.len() {
            of_ipv6(&mut changed[..length], &mut next);
        }
    }
}
