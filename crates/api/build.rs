//! Takes what the pages of the documentation load out of the crates that carry it, and packs it: the binary holds no
//! more of them than that.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::{env, fs};

use aide::redoc::Redoc;
use flate2::Compression;
use flate2::write::GzEncoder;
use utoipa_swagger_ui::Config;

/// Where the pages find the description.
const OPENAPI: &str = "/openapi.json";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let pack = |name: &str, bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes)?;
        fs::write(out.join(format!("{name}.gz")), encoder.finish()?)
    };
    let config = Arc::new(Config::from(OPENAPI));
    for name in ["swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"] {
        let file = utoipa_swagger_ui::serve(name, Arc::clone(&config))?.ok_or(name)?;
        pack(name, &file.bytes)?;
    }
    pack("redoc.html", Redoc::new(OPENAPI).with_title("Rollcall API").html().as_bytes())?;
    Ok(())
}
