//! Kernel facilities newer than the floor (Linux 6.1): probed, logged, reported, and switched off by
//! `AVIO_DISABLE=name,...`.
//!
//! A daemon lists the facilities that it can use, once; whoever uses one asks [`Facilities::probe`] at start-up, on the
//! control thread, and keeps the answer.

use avio_proto::control::FacilityState;

/// The environment variable that switches facilities off.
pub const DISABLE_VARIABLE: &str = "AVIO_DISABLE";

/// The value of [`DISABLE_VARIABLE`] that switches off every facility: what the tests of the floor set.
const ALL: &str = "all";

/// A name in `AVIO_DISABLE` that no facility has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{DISABLE_VARIABLE}: there is no facility `{name}`; {known}")]
pub struct UnknownFacility {
    name: String,
    known: String,
}

/// What a daemon can use and does use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facilities {
    known: &'static [&'static str],
    disabled: Vec<String>,
    states: Vec<FacilityState>,
}

impl Facilities {
    /// The facilities `known`, less those that the environment switches off.
    ///
    /// # Errors
    /// A name in `AVIO_DISABLE` is none of `known`.
    pub fn from_env(known: &'static [&'static str]) -> Result<Facilities, UnknownFacility> {
        Self::parse(known, &std::env::var(DISABLE_VARIABLE).unwrap_or_default())
    }

    /// The facilities `known`, less those that `disabled` names, separated by commas; `all` names every one.
    ///
    /// # Errors
    /// One of the names is none of `known`.
    pub fn parse(known: &'static [&'static str], disabled: &str) -> Result<Facilities, UnknownFacility> {
        if disabled.trim() == ALL {
            let disabled = known.iter().map(|&name| name.to_owned()).collect();
            return Ok(Facilities { known, disabled, states: Vec::new() });
        }
        let disabled: Vec<String> =
            disabled.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if let Some(name) = disabled.iter().find(|name| !known.contains(&name.as_str())) {
            let known = match known {
                [] => "this daemon uses none that can be switched off".to_owned(),
                names => format!("there are {}", names.join(", ")),
            };
            return Err(UnknownFacility { name: name.clone(), known });
        }
        Ok(Facilities { known, disabled, states: Vec::new() })
    }

    /// Whether to use the facility `name`: not if it is switched off, else if `probe` finds it. Logged and kept for
    /// [`Facilities::states`]. `probe` returns a detail worth knowing either way.
    ///
    /// # Panics
    /// In debug builds, if the daemon did not list `name`: it could then not be switched off.
    pub fn probe(&mut self, name: &'static str, probe: impl FnOnce() -> Result<String, String>) -> bool {
        debug_assert!(self.known.contains(&name), "facility {name} is not listed");
        let (used, detail) = if self.disabled.iter().any(|disabled| disabled == name) {
            (false, format!("switched off by {DISABLE_VARIABLE}"))
        } else {
            match probe() {
                Ok(detail) => (true, detail),
                Err(detail) => (false, detail),
            }
        };
        let verb = if used { "used" } else { "not used" };
        tracing::info!("kernel facility {name}: {verb} ({detail})");
        self.states.push(FacilityState { name: name.to_owned(), used, detail });
        used
    }

    /// What was probed, in that order.
    #[must_use]
    pub fn states(&self) -> &[FacilityState] {
        &self.states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["xdp_zero_copy", "uring_recvsend_bundle"];

    #[test]
    fn a_facility_can_be_switched_off() {
        let mut facilities = Facilities::parse(KNOWN, " xdp_zero_copy ,").unwrap();
        assert!(!facilities.probe("xdp_zero_copy", || panic!("is not to be probed")));
        assert!(facilities.probe("uring_recvsend_bundle", || Ok("Linux 6.10".into())));
        let states: Vec<_> =
            facilities.states().iter().map(|state| (state.used, state.detail.as_str())).collect();
        assert_eq!(states, [(false, "switched off by AVIO_DISABLE"), (true, "Linux 6.10")]);
    }

    #[test]
    fn all_switches_off_every_one_even_where_there_is_none() {
        let mut facilities = Facilities::parse(KNOWN, "all").unwrap();
        assert!(KNOWN.iter().all(|name| !facilities.probe(name, || panic!("is not to be probed"))));
        assert!(Facilities::parse(&[], "all").is_ok());
    }

    #[test]
    fn unknown_names_are_errors() {
        assert_eq!(
            Facilities::parse(KNOWN, "xdp").unwrap_err().to_string(),
            "AVIO_DISABLE: there is no facility `xdp`; there are xdp_zero_copy, uring_recvsend_bundle"
        );
        assert_eq!(
            Facilities::parse(&[], "xdp").unwrap_err().to_string(),
            "AVIO_DISABLE: there is no facility `xdp`; this daemon uses none that can be switched off"
        );
    }
}
