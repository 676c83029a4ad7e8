//! `siren pull`: one directory with artifact and backbone, for a machine without a network.

use std::io::Write;
use std::process::ExitCode;

use siren::hub::{HubOptions, Source};
use siren::{DeviceChoice, Error, Guard, OpenOptions, PackedCacheChoice, Status};

use crate::args::PullArgs;
use crate::output::{Outcome, STRONG};
use crate::progress;

pub fn run(args: &PullArgs) -> Outcome {
    let options = HubOptions {
        cache_dir: args.cache_dir.clone(),
        offline: args.offline,
        progress: progress::downloads(),
        ..HubOptions::default()
    };
    let model = Source::parse(&args.model)?;
    let backbone = args.backbone.as_deref().map(Source::parse).transpose()?;
    siren::hub::pull(&model, backbone.as_ref(), &args.to, &options)?;
    for dtype in &args.pack {
        let guard = Guard::open(OpenOptions {
            device: DeviceChoice::Cpu,
            dtype: *dtype,
            packed_cache: PackedCacheChoice::Auto,
            ..OpenOptions::new(args.to.display().to_string())
        })?;
        if guard.info().packed_file.is_none() {
            let (to, dtype) = (args.to.display(), guard.info().dtype);
            let message = format!("{to}: the packed weights in {dtype} could not be kept");
            return Err(Error::new(Status::Io, message).into());
        }
    }
    let directory = args.to.display();
    writeln!(anstream::stdout(), "pulled into {STRONG}{directory}{STRONG:#}")?;
    Ok(ExitCode::SUCCESS)
}
