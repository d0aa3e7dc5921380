//! All of Rollcall that a client can see: routes, frames, errors, tokens, documentation.
