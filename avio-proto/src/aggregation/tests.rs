//! The layouts against frames that scapy 2.5 wrote (scapy.contrib.lacp), and against any bytes.

use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn zeros(count: usize) -> String {
    "00".repeat(count)
}

#[test]
fn a_lacpdu_as_scapy_writes_it() {
    let hex = format!(
        "0180c20000023c219c714891880901010114800000112233445503840\
         0ff01023d00000002147fff66778899aabb1234800103043f00000003100064{}",
        zeros(64)
    );
    let frame = bytes(&hex);
    let pdu = LacpPdu {
        actor: PortInfo {
            system: SystemId { priority: 0x8000, mac: mac("00:11:22:33:44:55") },
            key: 0x0384,
            port_priority: 0x00ff,
            port: 0x0102,
            state: PortStateBits(0x3d),
        },
        partner: PortInfo {
            system: SystemId { priority: 0x7fff, mac: mac("66:77:88:99:aa:bb") },
            key: 0x1234,
            port_priority: 0x8001,
            port: 0x0304,
            state: PortStateBits(0x3f),
        },
        collector_max_delay: 100,
    };
    assert_eq!(SlowFrame::parse(&frame), Some(SlowFrame::Lacp(pdu)));
    assert_eq!(SlowFrame::Lacp(pdu).to_frame(mac("3c:21:9c:71:48:91")).as_slice(), frame);
    assert_eq!(pdu.actor.state.to_string(), "A-GSCD--");
    assert_eq!(pdu.actor.system.to_string(), "8000,00:11:22:33:44:55");
}

#[test]
fn a_marker_as_scapy_writes_it_and_its_response() {
    let hex = format!("0180c20000023c219c7148918809020101100102001122334455deadbeef{}", zeros(94));
    let frame = bytes(&hex);
    let marker = MarkerPdu {
        kind: MarkerKind::Marker,
        requester_port: 0x0102,
        requester_system: mac("00:11:22:33:44:55"),
        transaction: 0xdead_beef,
    };
    assert_eq!(SlowFrame::parse(&frame), Some(SlowFrame::Marker(marker)));
    assert_eq!(SlowFrame::Marker(marker).to_frame(mac("3c:21:9c:71:48:91")).as_slice(), frame);
    // A response differs in the TLV's type and in nothing else (802.1AX-2014 §6.5.3.3).
    let mut answer = frame;
    answer[16] = 2;
    assert_eq!(SlowFrame::parse(&answer), Some(SlowFrame::Marker(marker.response())));
}

#[test]
fn what_is_not_ours_is_not_read() {
    let good = SlowFrame::Lacp(LacpPdu::default()).to_frame(mac("02:00:00:00:00:01"));
    for (at, value) in
        [(0, 0), (5, 3), (12, 0), (13, 0), (14, 3), (15, 0), (16, 2), (17, 19), (36, 1), (57, 8)]
    {
        let mut bad = good;
        bad[at] = value;
        assert_eq!(SlowFrame::parse(&bad), None, "octet {at} = {value}");
    }
    for len in 0..60 {
        assert_eq!(SlowFrame::parse(&good[..len]), None, "{len} octets");
    }
    // Version 2 has version 1's TLVs in front of its own (§6.4.2.3).
    let mut newer = good;
    newer[15] = 2;
    assert!(SlowFrame::parse(&newer).is_some());
}

#[test]
fn a_polling_frame_is_its_own_bytes() {
    let frame = PollingFrame {
        destination: mac("02:00:00:00:00:01"),
        source: mac("02:00:00:00:00:02"),
        group: 0x0102_0304_0506_0708,
        member: 3,
        round: 9,
    };
    let wanted = bytes(&format!(
        "02000000000102000000000288b5{}01{}0102030405060708000300000009{}",
        "4156494f70",
        "",
        zeros(26)
    ));
    assert_eq!(frame.to_frame().as_slice(), wanted);
    assert_eq!(PollingFrame::parse(&wanted), Some(frame));
    for at in [12, 14, 19] {
        let mut bad = frame.to_frame();
        bad[at] ^= 1;
        assert_eq!(PollingFrame::parse(&bad), None);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_and_what_is_read_is_written_alike(mut frame in proptest::collection::vec(any::<u8>(), 0..200), ours: bool) {
        if ours && frame.len() >= 40 {
            frame[..6].copy_from_slice(&SLOW_PROTOCOLS_GROUP.0);
            frame[12..14].copy_from_slice(&[0x88, 0x09]);
            frame[14] = 1 + frame[14] % 2;
        }
        if let Some(read) = SlowFrame::parse(&frame) {
            let written = read.to_frame(MacAddr(frame[6..12].try_into().unwrap()));
            prop_assert_eq!(SlowFrame::parse(&written), Some(read));
        }
        if let Some(read) = PollingFrame::parse(&frame) {
            prop_assert_eq!(PollingFrame::parse(&read.to_frame()), Some(read));
        }
    }
}
