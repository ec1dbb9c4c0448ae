//! Attention drawn over the place of each patch, as PNG with a colour bar.

use std::io::Cursor;

use ssm_train::error::Error;

use super::cohort::Bag;
use crate::data::DataFile;

/// Longer side of the slide in pixels of the drawing.
const SIDE: f64 = 1024.0;
/// Frame around the slide, width of the bar, and pixels of a dot of a digit.
const MARGIN: usize = 16;
const BAR: usize = 24;
const DOT: usize = 3;
/// How much of the colour of a patch covers the thumbnail.
const COVER: f64 = 0.5;

/// Red, green, blue.
type Colour = [u8; 3];

/// What is drawn.
pub(super) struct Heatmap<'a> {
    pub(super) bag: &'a Bag,
    pub(super) attention: &'a [f32],
    /// A small picture of the whole slide.
    pub(super) thumbnail: Option<Picture>,
    /// Width and height of the slide in pixels of the full resolution; where it is not known the
    /// patches reach to its edges, and without a thumbnail only what they cover is drawn.
    pub(super) slide_size: Option<[f64; 2]>,
}

/// Rows of pixels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<Colour>,
}

impl Picture {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[255; 3]; width * height] }
    }

    /// Reads a PNG file of 8 bits a channel, grey or coloured, with or without transparency.
    ///
    /// # Errors
    /// [`Error::Data`] for any other file.
    pub(super) fn read(file: &DataFile) -> Result<Self, Error> {
        let refuse = |reason: String| file.error(format!("not a PNG file: {reason}"), None);
        let mut decoder = png::Decoder::new(Cursor::new(&file.bytes));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(|reason| refuse(reason.to_string()))?;
        let size = reader.output_buffer_size().ok_or_else(|| refuse("it is too large".into()))?;
        let mut bytes = vec![0; size];
        let frame = reader.next_frame(&mut bytes).map_err(|reason| refuse(reason.to_string()))?;
        let channels = frame.color_type.samples();
        let colour = |pixel: &[u8]| {
            if channels < 3 { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] }
        };
        Ok(Self {
            width: frame.width as usize,
            height: frame.height as usize,
            pixels: bytes[..frame.buffer_size()].chunks(channels).map(colour).collect(),
        })
    }

    /// The picture as a PNG file.
    fn to_png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(self.pixels.as_flattened())?;
        Ok(bytes)
    }

    fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, colour: Colour) {
        for row in y..(y + height).min(self.height) {
            let start = row * self.width;
            let end = (x + width).min(self.width);
            if x < end {
                self.pixels[start + x..start + end].fill(colour);
            }
        }
    }
}

impl Heatmap<'_> {
    /// Draws the slide and the bar.
    ///
    /// # Errors
    /// A sentence, for a bag without coordinates.
    pub(super) fn draw(&self) -> Result<Picture, String> {
        let coords = self.bag.coords.as_ref().ok_or(
            "the file has no coordinates; expected `coords` of shape [n, 2] beside the features",
        )?;
        let patch = self.bag.patch_size.unwrap_or_else(|| spacing(coords));
        let along = |axis: usize| coords.iter().map(move |place| place[axis]);
        let origin = match (&self.thumbnail, self.slide_size) {
            (None, None) => [0, 1].map(|axis| along(axis).fold(f64::INFINITY, f64::min)),
            _ => [0.0; 2],
        };
        let reach = |axis: usize| along(axis).fold(0.0, f64::max) + patch - origin[axis];
        let [slide_width, slide_height] = self.slide_size.unwrap_or([reach(0), reach(1)]);
        let scale = SIDE / slide_width.max(slide_height);
        let pixels = |length: f64| ((length * scale).ceil() as usize).max(1);
        let (width, height) = (pixels(slide_width), pixels(slide_height));
        let (low, high) = range(self.attention);
        let labels = [high, low].map(|value| format!("{value:.2e}"));
        let label_width = labels.iter().map(|label| label.len() * 4 * DOT).max().unwrap_or(0);
        // Room for the bar and its labels even beside a flat slide.
        let height_all = height.max(8 * 6 * DOT) + 2 * MARGIN;
        let width_all = width + 3 * MARGIN + BAR + DOT * 4 + label_width + MARGIN;
        let mut picture = Picture::new(width_all, height_all);
        self.background(&mut picture, width, height);
        let side = pixels(patch);
        for (place, attention) in coords.iter().zip(self.attention) {
            let at = [0, 1].map(|axis| ((place[axis] - origin[axis]) * scale) as usize);
            let colour = colour_of(share(*attention, low, high));
            self.cover(&mut picture, at, side, [width, height], colour);
        }
        let bar_x = width + 2 * MARGIN;
        let bar_height = height_all - 2 * MARGIN;
        for row in 0..bar_height {
            let colour = colour_of(1.0 - row as f64 / (bar_height - 1).max(1) as f64);
            picture.fill(bar_x, MARGIN + row, BAR, 1, colour);
        }
        let label_x = bar_x + BAR + 4 * DOT;
        write(&mut picture, label_x, MARGIN, &labels[0]);
        write(&mut picture, label_x, MARGIN + bar_height - 5 * DOT, &labels[1]);
        Ok(picture)
    }

    /// The drawing as a PNG file.
    ///
    /// # Errors
    /// A sentence, as [`Heatmap::draw`].
    pub(super) fn to_png(&self) -> Result<Vec<u8>, String> {
        self.draw()?.to_png().map_err(|reason| reason.to_string())
    }

    /// The thumbnail, stretched over the slide, or a light grey.
    fn background(&self, picture: &mut Picture, width: usize, height: usize) {
        let Some(thumbnail) = &self.thumbnail else {
            return picture.fill(MARGIN, MARGIN, width, height, [235; 3]);
        };
        for y in 0..height {
            for x in 0..width {
                let from =
                    (y * thumbnail.height / height) * thumbnail.width + x * thumbnail.width / width;
                picture.fill(MARGIN + x, MARGIN + y, 1, 1, thumbnail.pixels[from]);
            }
        }
    }

    /// Paints a patch, half transparent over a thumbnail; what lies outside of the slide is cut off.
    fn cover(
        &self,
        picture: &mut Picture,
        at: [usize; 2],
        side: usize,
        size: [usize; 2],
        colour: Colour,
    ) {
        for y in at[1]..(at[1] + side).min(size[1]) {
            for x in at[0]..(at[0] + side).min(size[0]) {
                let pixel = &mut picture.pixels[(MARGIN + y) * picture.width + MARGIN + x];
                *pixel = match &self.thumbnail {
                    Some(_) => mix(*pixel, colour, COVER),
                    None => colour,
                };
            }
        }
    }
}

/// Smallest distance between columns or rows, 1 if there is but one patch.
fn spacing(coords: &[[f64; 2]]) -> f64 {
    let along = |axis: usize| {
        let mut values: Vec<f64> = coords.iter().map(|place| place[axis]).collect();
        values.sort_by(f64::total_cmp);
        let gaps = values.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.filter(|gap| *gap > 0.0).fold(f64::INFINITY, f64::min)
    };
    let gap = along(0).min(along(1));
    if gap.is_finite() { gap } else { 1.0 }
}

fn range(values: &[f32]) -> (f32, f32) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (low, high)
}

fn share(value: f32, low: f32, high: f32) -> f64 {
    if high > low { f64::from((value - low) / (high - low)) } else { 0.5 }
}

fn mix(under: Colour, over: Colour, share: f64) -> Colour {
    let channel = |i: usize| f64::from(under[i]) * (1.0 - share) + f64::from(over[i]) * share;
    [channel(0) as u8, channel(1) as u8, channel(2) as u8]
}

/// From dark violet over green to yellow: even steps look even, in grey and to the colour-blind too.
///
/// Six points of matplotlib's viridis (CC0), interpolated.
fn colour_of(share: f64) -> Colour {
    const POINTS: [Colour; 6] = [
        [68, 1, 84],
        [65, 68, 135],
        [42, 120, 142],
        [34, 168, 132],
        [122, 209, 81],
        [253, 231, 37],
    ];
    let place = share.clamp(0.0, 1.0) * (POINTS.len() - 1) as f64;
    let below = (place as usize).min(POINTS.len() - 2);
    mix(POINTS[below], POINTS[below + 1], place - below as f64)
}

/// Writes a number in dots, three columns and five rows a character.
fn write(picture: &mut Picture, x: usize, y: usize, text: &str) {
    for (place, character) in text.chars().enumerate() {
        for (row, dots) in glyph(character).into_iter().enumerate() {
            for column in (0..3).filter(|column| dots >> (2 - column) & 1 == 1) {
                let at = x + (place * 4 + column) * DOT;
                picture.fill(at, y + row * DOT, DOT, DOT, [40; 3]);
            }
        }
    }
}

/// Rows of dots, the highest of three bits on the left.
fn glyph(character: char) -> [u8; 5] {
    match character {
        '0' => [7, 5, 5, 5, 7],
        '1' => [2, 6, 2, 2, 7],
        '2' => [7, 1, 7, 4, 7],
        '3' => [7, 1, 7, 1, 7],
        '4' => [5, 5, 7, 1, 1],
        '5' => [7, 4, 7, 1, 7],
        '6' => [7, 4, 7, 5, 7],
        '7' => [7, 1, 1, 2, 2],
        '8' => [7, 5, 7, 5, 7],
        '9' => [7, 5, 7, 1, 7],
        'e' => [0, 7, 7, 4, 7],
        '-' => [0, 0, 7, 0, 0],
        '.' => [0, 0, 0, 0, 2],
        _ => [0; 5],
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn bag() -> Bag {
        Bag {
            features: vec![0.0; 4],
            d_feature: 1,
            coords: Some(vec![[0.0, 0.0], [512.0, 0.0], [0.0, 512.0], [1024.0, 512.0]]),
            patch_size: None,
        }
    }

    const ATTENTION: [f32; 4] = [0.1, 0.2, 0.3, 0.4];

    fn heatmap(bag: &Bag) -> Heatmap<'_> {
        Heatmap { bag, attention: &ATTENTION, thumbnail: None, slide_size: None }
    }

    #[test]
    fn every_patch_has_its_colour_at_its_place() {
        let bag = bag();
        let picture = heatmap(&bag).draw().unwrap();
        // Three patches wide and two high: a patch is 1024 / 3 pixels.
        let at = |x: usize, y: usize| picture.pixels[(MARGIN + y) * picture.width + MARGIN + x];
        assert_eq!(at(100, 100), colour_of(0.0));
        assert_eq!(at(1000, 500), colour_of(1.0));
        assert_eq!(at(500, 500), [235; 3], "no patch");
        // The top of the bar is the largest value.
        assert_eq!(at(1024 + MARGIN + 5, 0), colour_of(1.0));
    }

    #[test]
    fn only_what_the_patches_cover_is_drawn_unless_the_slide_is_known() {
        let far = |place: &[f64; 2]| place.map(|axis| axis + 10240.0);
        let coords = bag().coords.unwrap().iter().map(far).collect();
        let bag = Bag { coords: Some(coords), ..bag() };
        assert_eq!(heatmap(&bag).draw().unwrap(), heatmap(&self::bag()).draw().unwrap());
        let slide_size = Some([20480.0, 10752.0]);
        let picture = Heatmap { slide_size, ..heatmap(&bag) }.draw().unwrap();
        let at = |x: usize, y: usize| picture.pixels[(MARGIN + y) * picture.width + MARGIN + x];
        assert_eq!(at(0, 0), [235; 3], "far from the patches");
        assert_eq!(at(513, 513), colour_of(0.0));
    }

    #[test]
    fn a_drawing_can_be_read_back_and_lie_under_another() {
        let bag = bag();
        let bytes = heatmap(&bag).to_png().unwrap();
        let file = DataFile { path: PathBuf::from("t.png"), bytes, sha256: String::new() };
        let read = Picture::read(&file).unwrap();
        assert_eq!(read, heatmap(&bag).draw().unwrap());
        let slide_size = Some([2048.0, 2048.0]);
        let over = Heatmap { thumbnail: Some(read), slide_size, ..heatmap(&bag) };
        let picture = over.draw().unwrap();
        assert_eq!(picture.height, 1024 + 2 * MARGIN);
        let file = DataFile { bytes: b"no picture".to_vec(), ..file };
        let error = Picture::read(&file).unwrap_err().to_string();
        assert!(error.starts_with("`t.png`: not a PNG file: "), "{error}");
    }

    #[test]
    fn without_coordinates_there_is_no_map() {
        let bag = Bag { coords: None, ..bag() };
        assert_eq!(
            heatmap(&bag).to_png().unwrap_err(),
            "the file has no coordinates; expected `coords` of shape [n, 2] beside the features"
        );
    }
}
