//! Bar plots as SVG, written by hand: a handful of rectangles needs no library.

use std::fmt::Write;

use super::spread::Spread;

/// Bars that stand together.
#[derive(Clone, Debug)]
pub struct Group {
    /// Under them.
    pub label: String,
    /// Name and value of each.
    pub bars: Vec<(String, Spread)>,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Above it, with the unit.
    pub title: String,
    /// From top to bottom.
    pub groups: Vec<Group>,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const BAR: f64 = 16.0;
const GAP: f64 = 26.0;
/// Ours first; shades that stay apart in grey, too.
const COLOURS: [&str; 5] = ["#d1495b", "#00798c", "#edae49", "#66a182", "#8d96a3"];

impl Bars {
    /// The drawing. Bars are medians, thin lines go from the smallest to the largest window.
    pub fn svg(&self) -> String {
        let max = self.groups.iter().flat_map(|g| &g.bars).map(|(_, s)| s.max).fold(0.0, f64::max).max(1e-9);
        let scale = (WIDTH - LEFT - 70.0) / max;
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.groups.iter().flat_map(|g| &g.bars) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let mut body = String::new();
        let mut y = 44.0;
        for group in &self.groups {
            let _ = writeln!(
                body,
                "<text x=\"10\" y=\"{:.0}\" font-weight=\"bold\">{}</text>",
                y + 4.0,
                escape(&group.label)
            );
            y += 12.0;
            for (name, s) in &group.bars {
                let colour = COLOURS[names.iter().position(|n| n == name).unwrap_or(0) % COLOURS.len()];
                let middle = y + BAR / 2.0;
                let _ = writeln!(
                    body,
                    "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\n\
                     <rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\n\
                     <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.0}\" y2=\"{middle:.0}\" stroke=\"black\"/>\n\
                     <text x=\"{:.1}\" y=\"{:.0}\">{:.2}</text>",
                    LEFT - 8.0,
                    y + 12.0,
                    escape(name),
                    s.median * scale,
                    BAR - 3.0,
                    LEFT + s.min * scale,
                    LEFT + s.max * scale,
                    LEFT + s.max * scale + 6.0,
                    y + 12.0,
                    s.median,
                );
                y += BAR;
            }
            y += GAP;
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-size=\"15\">{}</text>\n{body}</svg>\n",
            escape(&self.title)
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fits_and_text_is_escaped() {
        let s = |v| Spread { median: v, min: v, max: v, count: 1 };
        let bars = vec![("a<b".to_owned(), s(10.0)), ("c".to_owned(), s(5.0))];
        let plot = Bars { title: "t & u".into(), groups: vec![Group { label: "g".into(), bars }] }.svg();
        assert!(plot.contains("width=\"540.0\"") && plot.contains("width=\"270.0\""), "{plot}");
        assert!(plot.contains("a&lt;b") && plot.contains("t &amp; u"));
    }
}
