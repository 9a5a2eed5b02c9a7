//! The steps of `crisp run` on stderr: a line each, and a bar while an image is fetched.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crisp_proto::admin;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::Result;
use super::output;

/// Width of the column that names the step.
const STEP_WIDTH: usize = 6;

/// Prints steps; silent when asked to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    pub(crate) quiet: bool,
}

impl Ui {
    /// `start   server  in 8 ms`.
    ///
    /// # Errors
    /// When stderr cannot be written.
    pub(crate) fn step(self, step: &str, text: &str) -> Result<()> {
        if self.quiet { Ok(()) } else { output::err_line(&format!("{step:STEP_WIDTH$}  {text}")) }
    }

    /// # Errors
    /// When stderr cannot be written.
    pub(crate) fn warn(self, text: &str) -> Result<()> {
        output::err_line(&format!("{:STEP_WIDTH$}  {text}", "warn"))
    }

    /// A bar on a terminal, else nothing: the step's line says what came.
    pub(crate) fn pull(self, reference: &str) -> PullBar {
        let target = if !self.quiet && output::is_interactive() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        // Built before it is drawn: it appears once there is something to fetch.
        let mut bar = ProgressBar::with_draw_target(None, target)
            .with_prefix("pull")
            .with_message(reference.to_owned());
        let template = "{prefix:6}  {wide_msg}  {bar:16}  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar = bar.with_style(style);
        }
        PullBar { ui: self, bar, layers: BTreeMap::new(), resolved: None, started: Instant::now() }
    }
}

/// What is known of a running pull.
#[derive(Debug)]
pub(crate) struct PullBar {
    ui: Ui,
    bar: ProgressBar,
    /// Bytes done, by layer.
    layers: BTreeMap<String, u64>,
    resolved: Option<admin::ImageResolved>,
    started: Instant,
}

impl PullBar {
    /// # Errors
    /// When stderr cannot be written.
    pub(crate) fn resolved(&mut self, resolved: admin::ImageResolved) -> Result<()> {
        self.bar.set_length(resolved.bytes);
        if self.bar.is_hidden() && resolved.layers > 0 {
            let (layers, size) = (counted(resolved.layers), output::size(resolved.bytes));
            self.ui.step("fetch", &format!("{}  {layers}, {size}", self.bar.message()))?;
        }
        self.resolved = Some(resolved);
        Ok(())
    }

    pub(crate) fn layer(&mut self, layer: admin::LayerProgress) {
        let done = if layer.complete { layer.bytes_total } else { layer.bytes_done };
        // A complete layer may come without its size; what was counted stays.
        let known = self.layers.entry(layer.digest).or_default();
        *known = done.max(*known);
        self.bar.set_position(self.layers.values().sum());
    }

    /// Removes the bar. What came, in words: `3 layers, 4.2 MB, in 1.2 s`. Without news every layer was here.
    pub(crate) fn finish(self) -> String {
        self.bar.finish_and_clear();
        let took = output::took(Duration::from_millis(
            u64::try_from(self.started.elapsed().as_millis()).unwrap_or(0),
        ));
        match self.resolved {
            Some(admin::ImageResolved { layers, bytes }) if layers > 0 => {
                format!("{}, {}, in {took}", counted(layers), output::size(bytes))
            }
            _ => format!("up to date, in {took}"),
        }
    }
}

fn counted(layers: u32) -> String {
    if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") }
}
