//! What simulated brokers log, for whoever looks for a defect.

use std::cell::Cell;
use std::fmt;

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static PLACE: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
}

/// Writes it to the standard error from now on; `filter` is one of tracing's. Each line begins with
/// the simulated time and the node, 0 for what is done to nodes.
pub fn start(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_timer(Place);
    subscriber.init();
}

/// From now on `node` does something; 0 is none.
pub(super) fn at(now_ms: u64, node: u32) {
    PLACE.set((now_ms, node));
}

struct Place;

impl FormatTime for Place {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let (ms, node) = PLACE.get();
        write!(writer, "{:>10.3} s  node {node}", ms as f64 / 1000.0)
    }
}
