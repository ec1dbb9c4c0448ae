//! `ssm generate`: text from a trained language model.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use ssm_tasks::{
    TaskEntry, TaskVisitor,
    lm::{generate::GenerateRequest, sampling::Sampling},
    with_task,
};
use ssm_train::Error;

use crate::{DeviceArgs, evaluate::task_of, stream};

#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// Run directory, as in `runs/shakespeare_char_mamba`.
    run: PathBuf,
    /// Text to go on from; the text that follows it is printed as it comes.
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "prompts",
        required_unless_present = "prompts"
    )]
    prompt: Option<String>,
    /// File with one prompt a line. They are generated side by side, and printed as one JSON object a
    /// line in their order.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Tokens to generate; 0 for no limit.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: u64,
    /// Logits are divided by it; 0 takes the most likely token.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,
    /// Draw among the K most likely tokens only.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw among the most likely tokens that together have this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Draw among tokens that are at least P times as likely as the most likely one.
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Makes tokens that came before less likely; 1 changes nothing.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Text that ends the generation; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: GenerateArgs) -> Result<(), Error> {
    with_task(&task_of(&args.run)?, Generate(args))?
}

struct Generate(GenerateArgs);

impl TaskVisitor for Generate {
    type Output = Result<(), Error>;

    fn visit<T: TaskEntry>(self) -> Self::Output {
        let args = self.0;
        let side_by_side = args.prompts.is_some();
        let prompts = match &args.prompts {
            None => vec![args.prompt.unwrap_or_default()],
            Some(path) => {
                let file = ssm_tasks::data::read(path)?;
                let text = String::from_utf8_lossy(&file.bytes).into_owned();
                text.lines().map(str::to_owned).collect()
            }
        };
        let device = args.device.section()?;
        let (_, artifacts, model) = ssm_train::loading::restore_model::<T::Config, _>(
            &args.run,
            device.as_ref(),
            |config, artifacts, device| {
                let settings = config.settings(Vec::new());
                T::restore(&config.task, &config.model, artifacts, &settings, device)
            },
        )?;
        let request = GenerateRequest {
            prompts,
            max_tokens: (args.max_tokens > 0).then_some(args.max_tokens),
            sampling: Sampling {
                repetition_penalty: args.repetition_penalty,
                temperature: args.temperature,
                top_k: args.top_k,
                top_p: args.top_p,
                min_p: args.min_p,
            },
            seed: args.seed,
            stop: args.stop,
        };
        if !side_by_side {
            T::generate(&artifacts, &model, &request, &mut |_, text| stream(text))?;
            return stream("\n").map(|_| ());
        }
        let mut texts = vec![String::new(); request.prompts.len()];
        T::generate(&artifacts, &model, &request, &mut |index, text| {
            texts[index] += text;
            Ok(true)
        })?;
        for (prompt, text) in request.prompts.iter().zip(texts) {
            stream(&format!("{}\n", json!({ "prompt": prompt, "text": text })))?;
        }
        Ok(())
    }
}
