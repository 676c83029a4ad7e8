//! siren
fn main() {}
