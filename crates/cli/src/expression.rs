//! The filter grammar of ss(8), as far as it speaks of addresses and ports.
//!
//! ```text
//! expression = term { ["and" | "&" | "&&"] term | ("or" | "|" | "||") term }
//! term       = ["not" | "!"] ( "(" expression ")" | predicate )
//! predicate  = ("src" | "dst") [OP] HOST | ("sport" | "dport") [OP] [:]PORT
//! HOST       = ADDRESS[/PREFIX][:PORT] | *[:PORT] | :PORT
//! OP         = "=" "==" "eq" "!=" "ne" "neq" "<" "lt" ">" "gt" "<=" "le" "leq" ">=" "ge" "geq"
//! ```

use anyhow::{Context, bail};
use std::net::{Ipv4Addr, SocketAddrV4};
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

/// An address with a prefix, and a port; what is `None` is not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    network: Option<(Ipv4Addr, u32)>,
    port: Option<u16>,
}

impl Expression {
    /// Whether a socket with these addresses passes.
    pub fn matches(&self, local: &SocketAddrV4, peer: &SocketAddrV4) -> bool {
        let of = |side: &Side| match side {
            Side::Local => local,
            Side::Peer => peer,
        };
        match self {
            Expression::All => true,
            Expression::Not(inner) => !inner.matches(local, peer),
            Expression::And(a, b) => a.matches(local, peer) && b.matches(local, peer),
            Expression::Or(a, b) => a.matches(local, peer) || b.matches(local, peer),
            Expression::Host(side, host) => host.matches(of(side)),
            Expression::Port(side, relation, port) => relation.holds(of(side).port(), *port),
        }
    }
}

impl Host {
    fn matches(&self, address: &SocketAddrV4) -> bool {
        let inside = self.network.is_none_or(|(network, prefix)| {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            u32::from(network) & mask == u32::from(*address.ip()) & mask
        });
        inside && self.port.is_none_or(|port| port == address.port())
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
    let (address, port) = match text.rsplit_once(':') {
        Some((address, port)) => (address, Some(port)),
        None => (text, None),
    };
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

fn network(text: &str) -> anyhow::Result<(Ipv4Addr, u32)> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    let address = address
        .parse()
        .with_context(|| format!("{address:?} is no IPv4 address"))?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32);
    let prefix = prefix.with_context(|| format!("{text:?}: a prefix is 0 to 32"))?;
    Ok((address, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(expression: &str, local: &str, peer: &str) -> bool {
        let expression: Expression = expression.parse().unwrap();
        expression.matches(&local.parse().unwrap(), &peer.parse().unwrap())
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
        ] {
            assert!(expression.parse::<Expression>().is_err(), "{expression}");
        }
        assert!("( ".repeat(100_000).parse::<Expression>().is_err());
        assert!("! ".repeat(900).parse::<Expression>().is_err());
    }
}
