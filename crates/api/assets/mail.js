// The page behind the links in mails. What it asks for is posted to its own address.
const find = (id) => document.getElementById(id);
const path = location.pathname.replace(/\/+$/, "");
const token = location.hash.slice(1) || (history.state || {}).token || "";

// A token does not stay in the address bar. It stays with this tab, for a reload, until it is used.
if (token) history.replaceState({ token }, "", path);
// The link once more in this tab loads nothing by itself.
addEventListener("hashchange", () => location.reload());

const LINK_GONE = "This link has been used already, or it has expired.";
const NO_TOKEN = "This link is not complete. Please open it from the mail once more.";

const pages = {
  "/password/reset": {
    title: "Choose a new password",
    text: "All devices that are signed in will have to sign in again.",
    button: "Set the password",
    passwords: true,
    body: () => ({ token, password: find("password").value }),
    check: () => (find("password").value === find("again").value ? "" : "The two passwords differ."),
    done: () => "Your password is set. You can sign in with it now.",
    gone: LINK_GONE + " Please ask for a new one where you sign in.",
  },
  "/email/confirm": {
    title: "Confirm your e-mail address",
    text: "One click, and we know that this address is yours.",
    button: "Confirm",
    body: () => ({ token }),
    done: (data) => "Thank you: " + data.email + " is confirmed.",
    gone: LINK_GONE + " If you have confirmed your address before, all is well.",
  },
  unsubscribe: {
    title: "Notices of absences",
    text: "You will no longer be told by e-mail that you were recorded as absent.",
    button: "Stop the notices",
    body: () => ({}),
    done: () => "You will get no more of these notices.",
    gone: NO_TOKEN,
    undo: { button: "Send them again", method: "DELETE", done: () => "You will get these notices again." },
  },
};

const name = Object.keys(pages).find((end) => path.endsWith(end)) || "unsubscribe";
const page = pages[name];
let step = page;

const say = (text, wrong) => {
  find("result").textContent = text;
  find("result").className = wrong ? "wrong" : "";
};

const send = async () => {
  const answer = await fetch(path, {
    method: step.method || "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(page.body()),
  });
  const { data, error, details } = await answer.json();
  if (answer.ok) {
    history.replaceState(null, "", path);
    say(step.done(data));
    if (step.undo) {
      step = step.undo;
      find("text").hidden = true;
      find("button").textContent = step.button;
    } else {
      find("form").hidden = true;
    }
  } else if (answer.status === 400 && details && details.length) {
    say("The " + details[0].field + " " + details[0].message + ".", true);
  } else if (answer.status === 400) {
    say(page.gone, true);
  } else {
    say(error + ". Please try again in a moment.", true);
  }
};

find("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wrong = page.check ? page.check() : "";
  if (wrong) return say(wrong, true);
  find("button").disabled = true;
  try {
    await send();
  } catch {
    say("The server cannot be reached. Please try again in a moment.", true);
  }
  find("button").disabled = false;
});

document.title = page.title;
find("title").textContent = page.title;
find("text").textContent = page.text;
find("button").textContent = page.button;
if (page.passwords) {
  find("passwords").hidden = false;
  for (const id of ["password", "again"]) find(id).required = true;
}
if (name !== "unsubscribe" && !token) {
  say(NO_TOKEN, true);
} else {
  find("form").hidden = false;
}
