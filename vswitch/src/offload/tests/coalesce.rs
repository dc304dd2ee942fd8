//! Frames put together, cut again by our segmentation, verified by `etherparse`: the same frames, and no flow out of order.

use super::super::{Candidate, Coalescer, Frames, HEAD_CAPACITY, Merged, Mode, Segmenter};
use super::{complete_as_receiver, head_of, slow_sum, verified};
use avio_proto::mem::TailSum;
use avio_proto::virtio::features::{NET_GUEST_CSUM, NET_GUEST_TSO4, NET_GUEST_TSO6, NET_MRG_RXBUF};
use avio_proto::virtio::net::{GSO_TCPV4, GSO_TCPV6};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder, TcpHeader, TcpOptionElement,
};
use proptest::prelude::*;

/// What a guest that takes all of it has acked.
const TAKES: u64 = NET_GUEST_CSUM | NET_MRG_RXBUF | NET_GUEST_TSO4 | NET_GUEST_TSO6;
/// Payload of a full segment.
const MSS: usize = 300;

/// How a frame differs from the ordinary next segment of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twist {
    Ordinary,
    Short,
    Long,
    Empty,
    Push,
    Fin,
    Cwr,
    Ece,
    Urgent,
    Syn,
    OtherAck,
    OtherWindow,
    OtherStamp,
    NoOptions,
    OtherTtl,
    CongestionExperienced,
    Fragmentable,
    OtherId,
    Gap,
    Again,
    BadTcpChecksum,
    BadIpChecksum,
    Padded,
    Fragment,
    IpOptions,
    Udp,
    NotPlain,
    OtherMac,
    OtherDomain,
}

/// One flow as its sender has it.
#[derive(Debug, Clone)]
struct Flow {
    number: u8,
    v6: bool,
    sequence: u32,
    id: u16,
}

#[derive(Debug, Clone)]
struct Arrived {
    bytes: Vec<u8>,
    plain: bool,
    domain: u16,
    flow: u8,
}

impl Flow {
    fn new(number: u8, v6: bool) -> Self {
        // Both wrap soon.
        Self { number, v6, sequence: u32::MAX - 900, id: 0xfffd }
    }

    fn next(&mut self, twist: Twist) -> Arrived {
        use Twist as T;
        let payload_len = match twist {
            T::Short | T::Padded => 100,
            T::Long => MSS + 9,
            T::Empty => 0,
            _ => MSS,
        };
        if twist == T::Gap {
            self.sequence = self.sequence.wrapping_add(MSS as u32);
        }
        if twist == T::OtherId {
            self.id = self.id.wrapping_add(3);
        }
        let sequence = if twist == T::Again { self.sequence.wrapping_sub(MSS as u32) } else { self.sequence };
        let payload: Vec<u8> = (0..payload_len).map(|i| (sequence as usize + i * 7) as u8).collect();
        let mut tcp = TcpHeader::new(5000 + u16::from(self.number), 40000, sequence, 512);
        (tcp.ack, tcp.acknowledgment_number) = (true, if twist == T::OtherAck { 77 } else { 78 });
        (tcp.psh, tcp.fin, tcp.cwr) = (twist == T::Push, twist == T::Fin, twist == T::Cwr);
        (tcp.ece, tcp.urg, tcp.syn) = (twist == T::Ece, twist == T::Urgent, twist == T::Syn);
        tcp.window_size = if twist == T::OtherWindow { 513 } else { 512 };
        let stamp = if twist == T::OtherStamp { 2 } else { 1 };
        if twist != T::NoOptions {
            let options =
                [TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(stamp, 9)];
            tcp.set_options(&options).unwrap();
        }
        let ttl = if twist == T::OtherTtl { 63 } else { 64 };
        let is_ce = twist == T::CongestionExperienced;
        let ip = if self.v6 {
            let header = Ipv6Header {
                traffic_class: if is_ce { 3 } else { 2 },
                source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
                destination: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
                hop_limit: ttl,
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        } else {
            let mut header = Ipv4Header::new(0, ttl, IpNumber(0), [10, 1, 2, 3], [10, 4, 5, 6]).unwrap();
            header.identification = self.id;
            header.ecn = if is_ce { 3u8 } else { 2 }.try_into().unwrap();
            header.dont_fragment = twist != T::Fragmentable;
            if twist == T::Fragment {
                (header.dont_fragment, header.more_fragments) = (false, true);
            }
            if twist == T::IpOptions {
                header.options = [1u8, 1, 1, 1].into();
            }
            IpHeaders::Ipv4(header, Default::default())
        };
        let source = if twist == T::OtherMac { 3 } else { 1 };
        let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, source], [2, 0, 0, 0, 0, 2]).ip(ip);
        let mut bytes = Vec::new();
        if twist == T::Udp {
            step.udp(5000 + u16::from(self.number), 40000).write(&mut bytes, &payload).unwrap();
        } else {
            step.tcp_header(tcp).write(&mut bytes, &payload).unwrap();
        }
        let len = bytes.len();
        match twist {
            T::BadTcpChecksum => bytes[len - 1] ^= 1,
            T::BadIpChecksum => bytes[24] ^= 1,
            T::Padded => bytes.extend([0; 5]),
            _ => {}
        }
        if !matches!(twist, T::Again | T::Udp) {
            self.sequence = self.sequence.wrapping_add(payload_len as u32 + u32::from(twist == T::Fin));
        }
        self.id = self.id.wrapping_add(1);
        let domain = u16::from(twist == T::OtherDomain);
        let flow = match twist {
            // UDP between the same ports is another flow.
            T::Udp => self.number + 4,
            // IPv6 has no checksum: what was hit there is the source address, which makes it another host's.
            T::BadIpChecksum if self.v6 => self.number + 8,
            _ => self.number,
        };
        Arrived { bytes, plain: twist != T::NotPlain, domain, flow }
    }
}

struct Batch(Vec<Arrived>);

impl Frames for Batch {
    fn candidate(&self, i: u8) -> Candidate<'_> {
        let frame = &self.0[usize::from(i)];
        let (head, len) = (head_of(&frame.bytes), frame.bytes.len());
        Candidate { head, len, domain: frame.domain, pieces: 1, plain: frame.plain }
    }

    fn tail_sum(&self, i: u8) -> TailSum {
        let bytes = &self.0[usize::from(i)].bytes;
        slow_sum(&bytes[head_of(bytes).len()..])
    }
}

/// What is delivered, in order: a frame as it came, or the whole and what it is cut into again.
#[derive(Debug)]
struct Delivered {
    first: usize,
    merged: Option<(Merged, Vec<u8>)>,
    frames: Vec<Vec<u8>>,
}

fn deliver(batch: &Batch, acked: u64) -> Vec<Delivered> {
    let mut coalescer = Coalescer::new();
    coalescer.begin(acked);
    // As the engine keeps them: who stands where it was, and who goes behind whom.
    let mut standing = Vec::new();
    let mut behind = vec![None; batch.0.len()];
    for i in 0..batch.0.len() as u8 {
        match coalescer.offer(i, batch) {
            Some(before) => behind[usize::from(before)] = Some(usize::from(i)),
            None => standing.push(usize::from(i)),
        }
    }
    let merged: Vec<Merged> = coalescer.merged().collect();
    let one = |first: usize| {
        let bytes = &batch.0[first].bytes;
        let Some(whole) = merged.iter().find(|merged| usize::from(merged.first) == first) else {
            assert_eq!(behind[first], None);
            return Delivered { first, merged: None, frames: vec![bytes.clone()] };
        };
        let header_len = whole.offload.header_len();
        let mut head = head_of(bytes).to_vec();
        let mut tail = bytes[head.len()..].to_vec();
        let mut at = behind[first];
        while let Some(next) = at {
            tail.extend(&batch.0[next].bytes[header_len..]);
            at = behind[next];
        }
        assert_eq!(head.len() + tail.len(), whole.len);
        whole.patch(&mut head);
        let mut segments = Segmenter::new(&whole.offload, &head, whole.len, Mode::SegmentComplete);
        let mut scratch = [0; HEAD_CAPACITY];
        let mut frames = Vec::new();
        while let Some(s) = segments.next_into(&mut scratch) {
            let tail = &tail[s.tail_offset..s.tail_offset + s.tail_len];
            s.completion.unwrap().apply(&mut scratch[..s.head_len], slow_sum(tail));
            frames.push([&scratch[..s.head_len], tail].concat());
        }
        Delivered { first, merged: Some((*whole, [head, tail].concat())), frames }
    };
    standing.into_iter().map(one).collect()
}

/// Everything that must hold whatever the frames.
fn ensure_same(batch: &Batch, delivered: &[Delivered]) {
    for flow in 0..12 {
        let sent: Vec<&Vec<u8>> = batch.0.iter().filter(|f| f.flow == flow).map(|f| &f.bytes).collect();
        let of = |d: &&Delivered| batch.0[d.first].flow == flow;
        let got: Vec<&Vec<u8>> = delivered.iter().filter(of).flat_map(|d| &d.frames).collect();
        assert!(got == sent, "flow {flow}: {} frames of {}", got.len(), sent.len());
    }
    for (whole, bytes) in delivered.iter().filter_map(|d| d.merged.as_ref()) {
        let header = whole.offload.header_for(whole.offload.mode_for(TAKES));
        let first = &batch.0[usize::from(whole.first)].bytes;
        let v6 = first[12..14] == [0x86, 0xdd];
        assert_eq!(header.gso_type, if v6 { GSO_TCPV6 } else { GSO_TCPV4 });
        assert_eq!(usize::from(header.hdr_len), whole.offload.header_len());
        assert_eq!(usize::from(header.gso_size), first.len() - whole.offload.header_len());
        assert_eq!((header.csum_start, header.csum_offset), (if v6 { 54 } else { 34 }, 16));
        // The receiver's own sum over what it got is right, and so are all lengths.
        let mut bytes = bytes.clone();
        complete_as_receiver(&header, &mut bytes);
        assert_eq!(verified(&bytes).len(), whole.len - whole.offload.header_len());
    }
}

/// `twists` of one flow; gives how many frames each delivered one stands for.
fn lengths(v6: bool, twists: &[Twist]) -> Vec<usize> {
    let mut flow = Flow::new(0, v6);
    let batch = Batch(twists.iter().map(|&twist| flow.next(twist)).collect());
    let delivered = deliver(&batch, TAKES);
    ensure_same(&batch, &delivered);
    delivered.iter().map(|d| d.frames.len()).collect()
}

#[test]
fn a_stream_becomes_one_frame_over_wrapping_numbers() {
    for v6 in [false, true] {
        assert_eq!(lengths(v6, &[Twist::Ordinary; 40]), [40]);
        assert_eq!(lengths(v6, &[Twist::Ordinary, Twist::Ordinary, Twist::Short, Twist::Ordinary]), [3, 1]);
        assert_eq!(lengths(v6, &[Twist::Ordinary, Twist::Push, Twist::Ordinary, Twist::Ordinary]), [2, 2]);
        assert_eq!(lengths(v6, &[Twist::Ordinary, Twist::Fin]), [2]);
        assert_eq!(lengths(v6, &[Twist::Ece, Twist::Ece]), [2]);
    }
}

#[test]
fn what_differs_is_not_put_together_and_keeps_its_place() {
    use Twist as T;
    let apart = [
        T::Long,
        T::Empty,
        T::Cwr,
        T::Ece,
        T::Urgent,
        T::Syn,
        T::OtherAck,
        T::OtherWindow,
        T::OtherStamp,
        T::NoOptions,
        T::OtherTtl,
        T::CongestionExperienced,
        T::Gap,
        T::Again,
        T::BadTcpChecksum,
        T::NotPlain,
        T::OtherMac,
        T::OtherDomain,
    ];
    for twist in apart {
        for v6 in [false, true] {
            let got = lengths(v6, &[T::Ordinary, T::Ordinary, twist, T::Ordinary, T::Ordinary]);
            assert!(got[0] == 2 && got.len() >= 2, "{twist:?}: {got:?}");
        }
    }
    for twist in [T::Fragmentable, T::OtherId, T::BadIpChecksum, T::Fragment, T::IpOptions, T::Padded] {
        let got = lengths(false, &[T::Ordinary, T::Ordinary, twist, T::Ordinary, T::Ordinary]);
        assert!(got[0] == 2 && got.len() >= 2, "{twist:?}: {got:?}");
    }
    // Another protocol between the same two is none of a flow's business.
    assert_eq!(lengths(false, &[T::Ordinary, T::Udp]), [1, 1]);
}

#[test]
fn a_bad_first_frame_spoils_nothing() {
    assert_eq!(lengths(false, &[Twist::BadTcpChecksum, Twist::Ordinary, Twist::Ordinary]), [1, 2]);
    assert_eq!(lengths(false, &[Twist::BadIpChecksum, Twist::Ordinary, Twist::Ordinary]), [1, 2]);
}

#[test]
fn another_hosts_frame_does_not_stand_between() {
    // A frame with the second's sequence number comes again, behind one that is not of this flow.
    assert_eq!(lengths(true, &[Twist::Ordinary, Twist::BadIpChecksum, Twist::Again]), [2, 1]);
    assert_eq!(lengths(false, &[Twist::Ordinary, Twist::BadIpChecksum, Twist::Again]), [1, 1, 1]);
}

#[test]
fn only_what_the_receiver_takes() {
    let mut flow = Flow::new(0, true);
    let batch = Batch((0..4).map(|_| flow.next(Twist::Ordinary)).collect());
    assert_eq!(deliver(&batch, TAKES & !NET_GUEST_TSO6).len(), 4);
    assert_eq!(deliver(&batch, TAKES & !NET_GUEST_TSO4).len(), 1);
    for missing in [NET_GUEST_CSUM, NET_MRG_RXBUF, NET_GUEST_TSO4 | NET_GUEST_TSO6] {
        assert!(!super::super::takes_merged(TAKES & !missing));
    }
}

#[test]
fn one_frame_is_never_longer_than_an_ip_packet() {
    let mut flow = Flow::new(0, false);
    let mut batch = Batch((0..60).map(|_| flow.next(Twist::Ordinary)).collect());
    // The same with payloads of 9,000 bytes: eight do not fit.
    let (mut sequence, mut id) = (7u32, 0u16);
    for frame in &mut batch.0 {
        let mut tcp = TcpHeader::new(1, 2, sequence, 512);
        tcp.ack = true;
        let mut ip = Ipv4Header::new(0, 64, IpNumber(0), [10, 1, 2, 3], [10, 4, 5, 6]).unwrap();
        ip.identification = id;
        let mut bytes = Vec::new();
        let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let step = step.ip(IpHeaders::Ipv4(ip, Default::default())).tcp_header(tcp);
        step.write(&mut bytes, &[5; 8960]).unwrap();
        frame.bytes = bytes;
        (sequence, id) = (sequence + 8960, id + 1);
    }
    let delivered = deliver(&batch, TAKES);
    ensure_same(&batch, &delivered);
    assert_eq!(delivered[0].frames.len(), 7);
    assert!(delivered.iter().filter_map(|d| d.merged.as_ref()).all(|(whole, _)| whole.len <= 65_549));
}

const TWISTS: [Twist; 29] = [
    Twist::Ordinary,
    Twist::Short,
    Twist::Long,
    Twist::Empty,
    Twist::Push,
    Twist::Fin,
    Twist::Cwr,
    Twist::Ece,
    Twist::Urgent,
    Twist::Syn,
    Twist::OtherAck,
    Twist::OtherWindow,
    Twist::OtherStamp,
    Twist::NoOptions,
    Twist::OtherTtl,
    Twist::CongestionExperienced,
    Twist::Fragmentable,
    Twist::OtherId,
    Twist::Gap,
    Twist::Again,
    Twist::BadTcpChecksum,
    Twist::BadIpChecksum,
    Twist::Padded,
    Twist::Fragment,
    Twist::IpOptions,
    Twist::Udp,
    Twist::NotPlain,
    Twist::OtherMac,
    Twist::OtherDomain,
];

proptest! {
    /// Cutting what was put together gives back every frame of every flow, in its order, whatever came.
    #[test]
    fn any_mix_comes_back_as_it_was(
        // Mostly ordinary frames, so that there is something to put together.
        picks in proptest::collection::vec((0u8..4, prop_oneof![5 => Just(0usize), 2 => 0..TWISTS.len()]), 1..64),
        acked in prop_oneof![3 => Just(TAKES), 1 => Just(TAKES & !NET_GUEST_TSO4)],
    ) {
        let mut flows: Vec<Flow> = (0..4).map(|number| Flow::new(number, number % 2 == 1)).collect();
        let batch = Batch(picks.iter().map(|&(flow, twist)| flows[usize::from(flow)].next(TWISTS[twist])).collect());
        let delivered = deliver(&batch, acked);
        ensure_same(&batch, &delivered);
        // Nothing that is begun later overtakes within a flow: deliveries stand in the order of their first frames.
        prop_assert!(delivered.windows(2).all(|pair| pair[0].first < pair[1].first));
    }

    /// Any bytes at all: no panic, and what comes out is what went in.
    #[test]
    fn garbage_passes(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 14..200), 1..20), flips in proptest::collection::vec((0usize..20, 0usize..120, any::<u8>()), 0..6)) {
        let mut flow = Flow::new(0, false);
        let mut all: Vec<Arrived> = (0..8).map(|_| flow.next(Twist::Ordinary)).collect();
        all.extend(frames.into_iter().map(|bytes| Arrived { bytes, plain: true, domain: 0, flow: 1 }));
        for (frame, at, value) in flips {
            let count = all.len();
            let bytes = &mut all[frame % count].bytes;
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let batch = Batch(all);
        let total: usize = deliver(&batch, TAKES).iter().map(|d| d.frames.len()).sum();
        prop_assert_eq!(total, batch.0.len());
    }
}
