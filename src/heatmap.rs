//! `ssm heatmap`: where on a slide a trained run looks.

use std::path::PathBuf;

use clap::Args;
use ssm_tasks::{HeatmapRequest, TaskEntry, TaskVisitor, with_task};
use ssm_train::Error;

use crate::{DeviceArgs, evaluate::task_of, output};

#[derive(Args)]
pub(crate) struct HeatmapArgs {
    /// Run directory of one fold, as in `runs/NAME/fold_00`.
    run: PathBuf,
    /// File with the features and coordinates of one slide.
    #[arg(long, value_name = "FILE")]
    slide: PathBuf,
    /// Where to write the PNG file.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// A small picture of the whole slide, PNG, to draw over.
    #[arg(long, value_name = "FILE")]
    thumbnail: Option<PathBuf>,
    /// Size of the slide in pixels of the full resolution, as in `40000x30000`. Default: up to the
    /// last patch; without a thumbnail, from the first one.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = slide_size)]
    slide_size: Option<[f64; 2]>,
    #[command(flatten)]
    device: DeviceArgs,
}

fn slide_size(text: &str) -> Result<[f64; 2], String> {
    let number = |text: &str| text.parse::<f64>().ok().filter(|size| *size >= 1.0 && *size < 1e9);
    text.split_once('x')
        .and_then(|(width, height)| Some([number(width)?, number(height)?]))
        .ok_or_else(|| "expected a width and a height, as in `40000x30000`".to_owned())
}

pub(crate) fn run(args: HeatmapArgs) -> Result<(), Error> {
    let task = task_of(&args.run)?;
    for file in [Some(&args.slide), args.thumbnail.as_ref()].into_iter().flatten() {
        output::present(file)?;
    }
    with_task(&task, Draw(args))?
}

struct Draw(HeatmapArgs);

impl TaskVisitor for Draw {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let HeatmapArgs { run, slide, output, thumbnail, slide_size, device } = self.0;
        let device = device.section()?;
        let (_, artifacts, model) = ssm_train::loading::restore_model::<T::Config, _>(
            &run,
            device.as_ref(),
            |config, artifacts, device| {
                let settings = config.settings(Vec::new());
                T::restore(&config.task, &config.model, artifacts, &settings, device)
            },
        )?;
        let request = HeatmapRequest { slide, thumbnail, slide_size };
        let picture = T::heatmap(&artifacts, &model, &request)?;
        output::write(&output, &picture)
    }
}
