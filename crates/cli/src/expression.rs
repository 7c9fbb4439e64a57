//! The filter grammar of ss(8), as far as it speaks of addresses and ports.
//!
//! ```text
//! expression = term { ["and" | "&" | "&&"] term | ("or" | "|" | "||") term }
//! term       = ["not" | "!"] ( "(" expression ")" | predicate )
//! predicate  = ("src" | "dst") [OP] HOST | ("sport" | "dport") [OP] [:]PORT
//! HOST       = NETWORK[:PORT] | *[:PORT] | :PORT
//! NETWORK    = IPV4[/PREFIX] | "[" IPV6["%"DEVICE] "]" [/PREFIX] | "[" IPV6[/PREFIX] "]" | IPV6[/PREFIX]
//! OP         = "=" "==" "eq" "!=" "ne" "neq" "<" "lt" ">" "gt" "<=" "le" "leq" ">=" "ge" "geq"
//! ```
//!
//! Without brackets what follows the last colon is the port if what stands before it is an address,
//! as with ss: `::1:53` is port 53. What ss does not understand is an address as a whole: `fe80::1`.

use anyhow::{Context, bail};
use sockcr::target::Address;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    All,
    Not(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Host(Side, Host),
    Port(Side, Relation, u16),
}

/// Which of the two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Local,
    Peer,
}

/// How a port is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    Greater,
    AtMost,
    AtLeast,
}

/// What of a socket a filter looks at.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The device of its link-local addresses.
    pub device: Option<&'a str>,
}

/// An address with a prefix, and a port; what is `None` is not asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    network: Option<(Address, u32)>,
    port: Option<u16>,
}

impl Expression {
    /// Whether a socket with these addresses passes.
    pub fn matches(&self, ends: &Ends<'_>) -> bool {
        let of = |side: &Side| match side {
            Side::Local => &ends.local,
            Side::Peer => &ends.peer,
        };
        match self {
            Expression::All => true,
            Expression::Not(inner) => !inner.matches(ends),
            Expression::And(a, b) => a.matches(ends) && b.matches(ends),
            Expression::Or(a, b) => a.matches(ends) || b.matches(ends),
            Expression::Host(side, host) => host.matches(of(side), ends.device),
            Expression::Port(side, relation, port) => relation.holds(of(side).port(), *port),
        }
    }
}

impl Host {
    fn matches(&self, address: &SocketAddr, device: Option<&str>) -> bool {
        let inside = self.network.as_ref().is_none_or(|(network, prefix)| {
            is_inside(network.ip(), *prefix, address.ip())
                && network
                    .device()
                    .is_none_or(|wanted| is_of(address, device, wanted))
        });
        inside && self.port.is_none_or(|port| port == address.port())
    }
}

/// A network of IPv4 holds IPv4-mapped addresses of IPv6 too, as `inet_diag_bc_run` has it.
fn is_inside(network: IpAddr, prefix: u32, address: IpAddr) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let host_bits = width.saturating_sub(prefix);
        (a ^ b).checked_shr(host_bits).unwrap_or(0) == 0
    };
    match (network, address) {
        (IpAddr::V4(network), address) => match address.to_canonical() {
            IpAddr::V4(address) => same(network.to_bits().into(), address.to_bits().into(), 32),
            IpAddr::V6(_) => false,
        },
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            same(network.to_bits(), address.to_bits(), 128)
        }
        (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Whether a link-local address is of the device with this name or index.
fn is_of(address: &SocketAddr, device: Option<&str>, wanted: &str) -> bool {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            device == Some(wanted) || wanted == v6.scope_id().to_string()
        }
        _ => false,
    }
}

impl Relation {
    fn holds(self, a: u16, b: u16) -> bool {
        match self {
            Relation::Equal => a == b,
            Relation::NotEqual => a != b,
            Relation::Less => a < b,
            Relation::Greater => a > b,
            Relation::AtMost => a <= b,
            Relation::AtLeast => a >= b,
        }
    }
}

impl FromStr for Expression {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Expression> {
        let mut words = Words(tokens(text));
        if words.0.is_empty() {
            return Ok(Expression::All);
        }
        let expression = words.any()?;
        match words.next() {
            None => Ok(expression),
            Some(word) => bail!("{word:?} is too much"),
        }
    }
}

/// Parentheses and operators stand alone even where no blank surrounds them.
fn tokens(text: &str) -> Vec<String> {
    let mut spaced = String::with_capacity(text.len() * 2);
    let mut last = ' ';
    for c in text.chars() {
        let operator = |c: char| "!=<>&|()".contains(c);
        // The two halves of `!=`, `==`, `<=`, `>=`, `&&` and `||` stay together.
        let together = (c == '=' && "!=<>".contains(last)) || ("&|".contains(c) && c == last);
        if (operator(c) || operator(last)) && !together {
            spaced.push(' ');
        }
        spaced.push(c);
        last = c;
    }
    spaced.split_whitespace().rev().map(str::to_owned).collect()
}

/// The words still to be read, the next one last.
struct Words(Vec<String>);

impl Words {
    fn next(&mut self) -> Option<String> {
        self.0.pop()
    }

    fn peek(&self) -> Option<&str> {
        self.0.last().map(String::as_str)
    }

    fn accept(&mut self, words: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| words.contains(&word));
        if found {
            self.0.pop();
        }
        found
    }

    fn any(&mut self) -> anyhow::Result<Expression> {
        let mut left = self.all()?;
        while self.accept(&["or", "|", "||"]) {
            left = Expression::Or(Box::new(left), Box::new(self.all()?));
        }
        Ok(left)
    }

    fn all(&mut self) -> anyhow::Result<Expression> {
        let mut left = self.term(0)?;
        loop {
            let joined = self.accept(&["and", "&", "&&"]);
            match self.peek() {
                Some("or" | "|" | "||" | ")") | None if !joined => return Ok(left),
                _ => left = Expression::And(Box::new(left), Box::new(self.term(0)?)),
            }
        }
    }

    fn term(&mut self, depth: usize) -> anyhow::Result<Expression> {
        // More than anybody means, and far from what the stack holds.
        if self.0.len() > 1000 || depth > 100 {
            bail!("it is too long");
        }
        if self.accept(&["not", "!"]) {
            return Ok(Expression::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.accept(&["("]) {
            let inner = self.any()?;
            return match self.accept(&[")"]) {
                true => Ok(inner),
                false => bail!("a closing parenthesis is missing"),
            };
        }
        self.predicate()
    }

    fn predicate(&mut self) -> anyhow::Result<Expression> {
        let word = self.next().context("something is missing at the end")?;
        let (side, port) = match word.as_str() {
            "src" => (Side::Local, false),
            "dst" => (Side::Peer, false),
            "sport" => (Side::Local, true),
            "dport" => (Side::Peer, true),
            word => bail!("{word:?}: src, dst, sport and dport are known"),
        };
        let relation = self.relation();
        let value = self.next().with_context(|| format!("{word} what?"))?;
        if port {
            let number = value.trim_start_matches(':').parse();
            let number = number.with_context(|| format!("{value:?} is no port"))?;
            return Ok(Expression::Port(side, relation, number));
        }
        let host = Expression::Host(side, host(&value)?);
        match relation {
            Relation::Equal => Ok(host),
            Relation::NotEqual => Ok(Expression::Not(Box::new(host))),
            _ => bail!("{word}: addresses are equal or not, never above or below"),
        }
    }

    fn relation(&mut self) -> Relation {
        for (words, relation) in [
            (["=", "==", "eq"], Relation::Equal),
            (["!=", "ne", "neq"], Relation::NotEqual),
            (["<", "lt", "lt"], Relation::Less),
            ([">", "gt", "gt"], Relation::Greater),
            (["<=", "le", "leq"], Relation::AtMost),
            ([">=", "ge", "geq"], Relation::AtLeast),
        ] {
            if self.accept(&words) {
                return relation;
            }
        }
        Relation::Equal
    }
}

fn host(text: &str) -> anyhow::Result<Host> {
    let (address, port) = split(text);
    let port = match port {
        None | Some("*") => None,
        Some(port) => Some(
            port.parse()
                .with_context(|| format!("{port:?} is no port"))?,
        ),
    };
    let network = match address {
        "" | "*" => None,
        address => Some(network(address)?),
    };
    Ok(Host { network, port })
}

/// The network, and the port if there is one.
fn split(text: &str) -> (&str, Option<&str>) {
    let whole = (text, None);
    let Some((before, port)) = text.rsplit_once(':') else {
        return whole;
    };
    match text.starts_with('[') {
        // The last colon is one of the address.
        true if port.contains(']') || !text.contains(']') => whole,
        true => (before, Some(port)),
        false if before.contains(':') && !is_port_of(before, port) => whole,
        false => (before, Some(port)),
    }
}

/// Whether what follows the last colon of an IPv6 address without brackets is its port.
fn is_port_of(before: &str, port: &str) -> bool {
    (port == "*" || port.parse::<u16>().is_ok()) && network(before).is_ok()
}

fn network(text: &str) -> anyhow::Result<(Address, u32)> {
    let (bare, bracketed) = unbracketed(text)?;
    let (address, prefix) = match bare.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (&*bare, None),
    };
    let address: Address = address
        .parse()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    if bracketed && address.ip().is_ipv4() {
        bail!("{text:?}: only an IPv6 address stands in brackets");
    }
    let most = if address.ip().is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(most), |prefix| prefix.parse().ok());
    let prefix = prefix.filter(|prefix| *prefix <= most);
    let prefix = prefix.with_context(|| format!("{text:?}: a prefix is 0 to {most}"))?;
    Ok((address, prefix))
}

/// A network without its brackets, whether the prefix stands in them or behind; and whether it had
/// any.
fn unbracketed(text: &str) -> anyhow::Result<(String, bool)> {
    let Some(inner) = text.strip_prefix('[') else {
        return Ok((text.into(), false));
    };
    let (inner, behind) = inner
        .split_once(']')
        .with_context(|| format!("{text:?}: a closing bracket is missing"))?;
    if !behind.is_empty() && !behind.starts_with('/') {
        bail!("{text:?}: a prefix or a port follows the bracket");
    }
    Ok((format!("{inner}{behind}"), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(expression: &str, local: &str, peer: &str) -> bool {
        let expression: Expression = expression.parse().unwrap();
        expression.matches(&Ends {
            local: local.parse().unwrap(),
            peer: peer.parse().unwrap(),
            device: Some("eth0"),
        })
    }

    #[test]
    fn sockets_pass_as_with_ss() {
        let (local, peer) = ("10.1.2.3:5353", "192.0.2.7:53");
        for (expression, expected) in [
            ("", true),
            ("dport = :53 and not src 127.0.0.1", true),
            ("dport = :53 and not src 10.1.2.3", false),
            ("src 10.1.0.0/16", true),
            ("src 10.2.0.0/16", false),
            ("src 10.1.2.3:5353 dst 192.0.2.7:53", true),
            ("src *:5353", true),
            ("src :54", false),
            ("dst 0.0.0.0/0", true),
            ("sport >= 5000 && sport lt :6000", true),
            ("( sport = 1 or sport = 5353 ) and dport != 53", false),
            ("sport = 1 or sport = 5353 and dport = 53", true),
            ("!(sport = 1)", true),
            ("sport=:5353", true),
            ("sport!=:5353||dport==53&&dport<=53", true),
            ("src != 10.1.2.3", false),
        ] {
            assert_eq!(passes(expression, local, peer), expected, "{expression}");
        }
    }

    /// `finding::as_ss_does` compares with ss itself.
    #[test]
    fn addresses_of_both_families_pass() {
        let nobody = "[::]:0";
        for (expression, local, expected) in [
            ("src [fe80::1]:53", "[fe80::1%2]:53", true),
            ("src [fe80::1]:54", "[fe80::1%2]:53", false),
            ("src fe80::1", "[fe80::1%2]:53", true),
            ("src fe80::2", "[fe80::1%2]:53", false),
            ("src ::1:53", "[::1]:53", true),
            ("src ::1:53", "[::1:53]:99", false),
            ("src ::1:*", "[::1]:53", true),
            ("src [fe80::1%eth0]", "[fe80::1%2]:53", true),
            ("src [fe80::1%eth0]:53", "[fe80::1%2]:53", true),
            ("src fe80::1%eth0", "[fe80::1%2]:53", true),
            ("src [fe80::1%2]", "[fe80::1%2]:53", true),
            ("src [fe80::1%eth1]", "[fe80::1%2]:53", false),
            ("src [fe80::%eth0]/10", "[fe80::1%2]:53", true),
            ("src [fe80::1%eth0]", "[fe80::1]:53", false),
            ("src [2001:db8::]/32", "[2001:db8::1]:53", true),
            ("src [2001:db8::/32]:53", "[2001:db8::1]:53", true),
            ("src [2001:db8::]/32:53", "[2001:db8::1]:53", true),
            ("src [2001:db8::]/32:54", "[2001:db8::1]:53", false),
            ("src 2001:db8::/32", "[2001:db8::1]:53", true),
            ("src 2001:db8::/32:53", "[2001:db8::1]:53", true),
            ("src 2001:db8::/128", "[2001:db8::1]:53", false),
            ("dst [::]/0", "[2001:db8::1]:53", true),
            ("src [::]/0", "10.1.2.3:53", false),
            ("src ::/0", "[::ffff:10.1.2.3]:53", true),
            ("src 10.0.0.0/8", "[::ffff:10.1.2.3]:53", true),
            ("src 10.1.2.3:53", "[::ffff:10.1.2.3]:53", true),
            ("src 0.0.0.0/0", "[::ffff:10.1.2.3]:53", true),
            ("src 0.0.0.0/0", "[::]:53", false),
            ("src [::ffff:0:0]/96", "10.1.2.3:53", false),
            ("src [::ffff:10.1.2.3]", "[::ffff:10.1.2.3]:53", true),
            ("src ::ffff:10.1.2.3", "[::ffff:10.1.2.3]:53", true),
        ] {
            assert_eq!(passes(expression, local, nobody), expected, "{expression}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for expression in [
            "foo",
            "src",
            "sport = x",
            "src > 1.2.3.4",
            "( src 1.2.3.4",
            "src 1.2.3.4 )",
            "src 1.2.3.4/33",
            "and",
            "sport 1 or",
            "not",
            "src 1.2.3",
            "src [1.2.3.4]",
            "src [::1",
            "src [::1]53",
            "src [::1]:x",
            "src [::]/129",
            "src fe80:",
            "src [2001:db8::1%eth0]",
            "src [fe80::1%]",
            "src 1.2.3.4%eth0",
        ] {
            assert!(expression.parse::<Expression>().is_err(), "{expression}");
        }
        assert!("( ".repeat(100_000).parse::<Expression>().is_err());
        assert!("! ".repeat(900).parse::<Expression>().is_err());
    }
}
