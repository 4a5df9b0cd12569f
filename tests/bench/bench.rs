//! What a launch costs, beside what it could cost: side by side in one run, medians over interleaved rounds.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common"]
mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}
mod claim;
mod launch;
mod programs;
mod rounds;
mod svirtctl;

fn main() {
    let sections: [(&str, fn()); 6] = [
        ("claim", claim::run),
        ("launch", launch::one),
        ("counts", launch::counts),
        ("storm", launch::storm),
        ("disks", launch::disks),
        ("svirtctl", svirtctl::run),
    ];
    // `cargo bench` says --bench
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let Some(unknown) = wanted.iter().find(|word| sections.iter().all(|(name, _)| name != word)) {
        eprintln!("bench: there is no section {unknown}: claim, launch, counts, storm, disks or svirtctl");
        std::process::exit(2);
    }
    for (name, run) in sections {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            run();
        }
    }
}
