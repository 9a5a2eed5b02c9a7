//! Traffic control: the one queueing discipline that limits a pod's bandwidth.
//!
//! A token bucket filter on the host's end of the veth pair shapes what goes into the pod, one on the pod's end what comes
//! out of it. It holds packets back, so a stream adapts without losses. (The limit on the pod's end binds programs without
//! `CAP_NET_ADMIN` in the pod, which containers do not have unless they ask for it. On the host's side the kernel can only
//! drop what comes in, or needs one more device for each pod.)
//!
//! Source: `linux/pkt_sched.h`, tc-tbf(8).

use crate::netlink::{ACK, Attributes, CREATE, EXCL, Message};

const RTM_NEWQDISC: u16 = 36;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_H_ROOT: u32 = 0xffff_ffff;
/// With a link layer that is named, the kernel computes what it needs, and wants no table from us.
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// What may pass at once, in bytes: room for the largest packets that a veth carries unsegmented, and no less than
/// [`BURST_TIME_MS`] of the rate, which the kernel's timer needs to reach it.
const BURST_BYTES_MIN: u64 = 256 << 10;
const BURST_TIME_MS: u64 = 20;
/// How long a packet waits at most before it is dropped, in milliseconds.
const QUEUE_TIME_MS: u64 = 100;

/// Message: limits what is sent out of an interface that has no other limit yet.
pub(crate) fn limit(interface: u32, bits_per_second: u64) -> Message {
    let bytes_per_second = (bits_per_second / 8).max(1);
    let burst = during(bytes_per_second, BURST_TIME_MS).max(BURST_BYTES_MIN);
    let queue = during(bytes_per_second, QUEUE_TIME_MS).saturating_add(burst);
    let options = Attributes::new()
        .bytes(TCA_TBF_PARMS, &parameters(bytes_per_second, queue))
        .bytes(TCA_TBF_RATE64, &bytes_per_second.to_ne_bytes())
        .u32(TCA_TBF_BURST, saturated(burst));
    let attributes = Attributes::new().text(TCA_KIND, "tbf").nest(TCA_OPTIONS, &options);
    // `struct tcmsg`: family, padding, interface, handle, parent, info.
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&interface.to_ne_bytes());
    header[12..16].copy_from_slice(&TC_H_ROOT.to_ne_bytes());
    Message::new(RTM_NEWQDISC, ACK | CREATE | EXCL, &header, &attributes)
}

/// `struct tc_tbf_qopt`: rate, peak rate, limit in bytes, burst in ticks, mtu in ticks. What the other attributes say
/// counts instead of the last two.
fn parameters(bytes_per_second: u64, queue_bytes: u64) -> [u8; 36] {
    let mut parameters = [0; 36];
    // `struct tc_ratespec`: cell_log, linklayer, overhead, cell_align, mpu, rate.
    parameters[1] = TC_LINKLAYER_ETHERNET;
    parameters[8..12].copy_from_slice(&saturated(bytes_per_second).to_ne_bytes());
    parameters[24..28].copy_from_slice(&saturated(queue_bytes).to_ne_bytes());
    parameters
}

fn during(bytes_per_second: u64, time_ms: u64) -> u64 {
    bytes_per_second.saturating_mul(time_ms) / 1000
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
