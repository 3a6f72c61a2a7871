//! What simulated brokers log, for whoever looks for a defect.

/// Writes it to the standard error from now on; `filter` is one of tracing's.
pub fn start(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time();
    subscriber.init();
}
