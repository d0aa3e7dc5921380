//! Who is connected, by topic and by user, and the actor that owns one socket.
