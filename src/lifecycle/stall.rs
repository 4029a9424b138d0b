//! A place at which a part of the daemon stands still, so that a test can ask whether the watchdog notices.
//!
//! `PHASED_STALL=<place>:<file>`: that part stands still as long as the file is there. Places are `journal` and `control` (their
//! writers), `queue`, `owner` (of any run), `lua` (of any run) and `views` (their thread). Only debug builds know the variable; in a release build
//! there is nothing to set (checked below, by the compiler).

#[cfg(debug_assertions)]
use std::path::PathBuf;

/// The stall point of a daemon, if it has one.
#[derive(Debug, Clone, Default)]
pub struct Stalls {
    #[cfg(debug_assertions)]
    named: Option<(String, PathBuf)>,
}

/// Where one part stands still, if it does.
#[derive(Debug, Clone, Default)]
pub struct Stall {
    #[cfg(debug_assertions)]
    file: Option<PathBuf>,
}

#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Stall>() == 0, "a release build has no stall point");

#[cfg(debug_assertions)]
const PLACES: [&str; 6] = ["journal", "control", "queue", "owner", "lua", "views"];

impl Stalls {
    /// What `PHASED_STALL` says. A release build has none whatever it says.
    ///
    /// # Errors
    /// One sentence, when it says something that is no stall point: a test that stalls nothing would prove nothing.
    pub fn named(text: Option<&str>) -> Result<Stalls, String> {
        #[cfg(debug_assertions)]
        if let Some(text) = text {
            let parts = text.split_once(':').filter(|(place, file)| PLACES.contains(place) && file.starts_with('/'));
            let Some((place, file)) = parts else {
                let places = PLACES.join(", ");
                return Err(format!(
                    "PHASED_STALL={text:?} is no stall point: write PLACE:/FILE, with one of {places}"
                ));
            };
            return Ok(Stalls { named: Some((place.to_owned(), file.into())) });
        }
        let _unused_in_release = text;
        Ok(Stalls::default())
    }

    /// The stall point of `place`.
    #[must_use]
    pub fn at(&self, place: &str) -> Stall {
        #[cfg(debug_assertions)]
        if let Some((_, file)) = self.named.as_ref().filter(|(named, _)| named == place) {
            return Stall { file: Some(file.clone()) };
        }
        let _unused_in_release = place;
        Stall::default()
    }
}

impl Stall {
    /// Holds up whoever calls it, thread and all, as long as the file is there.
    pub fn here(&self) {
        #[cfg(debug_assertions)]
        if let Some(file) = &self.file {
            while file.exists() {
                #[allow(clippy::disallowed_methods)] // to stand still is what it is for
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_place_and_a_file() {
        let stalls = Stalls::named(Some("owner:/tmp/a:b")).unwrap();
        assert_eq!(stalls.at("owner").file, Some("/tmp/a:b".into()));
        assert_eq!(stalls.at("lua").file, None);
        assert_eq!(Stalls::named(None).unwrap().at("owner").file, None);
        for bad in ["", "owner", "owner:relative", "nobody:/tmp/x"] {
            assert!(Stalls::named(Some(bad)).unwrap_err().contains("PLACE:/FILE"), "{bad}");
        }
        // Without the file nothing stands still.
        Stalls::named(Some("owner:/nonexistent/file")).unwrap().at("owner").here();
    }
}
