//! The options of `SOL_UDP`.

use super::value::{Names, Unit};
use super::{Access, Default, Field, Kind, Level, Row, Special, Stage, Wire};
use sockcr_image::number;

const ENCAP: Names = &[
    ("none", 0),
    ("UDP_ENCAP_ESPINUDP", 2),
    ("UDP_ENCAP_L2TPINUDP", 3),
];
const LITE_ONLY: Access = Access::ReadOnly("belongs to UDP-Lite; always 0 on UDP");

/// 0 is all; less than the header cannot be (`udp_lib_setsockopt`).
/// Not the same as 0 that was set, by which a receiver wants all covered.
const ALL: Default = Default::ByProtocol(&[], 0);
const COVERAGE: Kind = Kind::ZeroOr(8, 65535, Unit::Bytes);

const fn row(number: u16, name: &'static str, kind: Kind) -> Row {
    Row::new(Level::Udp, number, name, kind)
}

/// The rows, in the order in which restore writes them.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    row(10, "UDPLITE_SEND_CSCOV", COVERAGE).default(ALL).hidden(Field::SendCoverage)
        .access(LITE_ONLY).only_on(Special::Lite).since("2.6.20"),
    row(11, "UDPLITE_RECV_CSCOV", COVERAGE).default(ALL).hidden(Field::ReceiveCoverage)
        .access(LITE_ONLY).only_on(Special::Lite).since("2.6.20"),
    row(100, "UDP_ENCAP", Kind::Enum(ENCAP)).stage(Stage::AfterQueue).since("2.5.67"),
    row(101, "UDP_NO_CHECK6_TX", Kind::Flag).since("3.16"),
    row(102, "UDP_NO_CHECK6_RX", Kind::Flag).since("3.16"),
    row(103, "UDP_SEGMENT", Kind::Int(0, 65535, Unit::Bytes)).since("4.18"),
    row(104, "UDP_GRO", Kind::Flag).since("5.0"),
    row(1, "UDP_CORK", Kind::Flag).rfc(number::UDPOPT_CORK, Wire::Flag).stage(Stage::Last).since("2.5.44"),
];
