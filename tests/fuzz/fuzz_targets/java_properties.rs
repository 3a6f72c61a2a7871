//! `java_properties` of `tests/fuzz` for cargo-fuzz.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (raftmq_tests::fuzz::target("java_properties").unwrap().run)(bytes));
