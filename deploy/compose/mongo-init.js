// Makes the replica set and the accounts of compose.yaml's profile `cluster`. What is there already stays.

const { MONGO_PASSWORD, MONGO_ROOT_PASSWORD } = process.env;
if (!MONGO_PASSWORD || !MONGO_ROOT_PASSWORD) {
  print("MONGO_PASSWORD and MONGO_ROOT_PASSWORD must be set; compose.yaml says how to make them.");
  quit(1);
}

// Until there is an account, whoever comes from this address may make the first.
function until(what, attempt) {
  for (let left = 60; ; left--) {
    try {
      const result = attempt();
      if (result) return result;
    } catch (error) {
      if (left === 0) throw error;
    }
    if (left === 0) throw new Error(`waited in vain for ${what}`);
    sleep(1000);
  }
}

const admin = until("MongoDB", () =>
  new Mongo("mongodb://127.0.0.1/?directConnection=true&serverSelectionTimeoutMS=2000").getDB("admin"));

if (!admin.hello().setName) {
  admin.runCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: "mongo:27017" }] } });
}
until("a primary", () => admin.hello().isWritablePrimary);

function make(db, user, pwd, roles) {
  try {
    db.createUser({ user, pwd, roles });
    print(`made the account ${user}`);
  } catch (error) {
    if (!["DuplicateKey", "Location51003", "Unauthorized"].includes(error.codeName)) throw error;
  }
}

make(admin, "root", MONGO_ROOT_PASSWORD, ["root"]);
admin.auth("root", MONGO_ROOT_PASSWORD);
const rollcall = admin.getSiblingDB("rollcall");
make(rollcall, "rollcall", MONGO_PASSWORD, ["readWrite"]);
// The password is the one that is set now.
rollcall.changeUserPassword("rollcall", MONGO_PASSWORD);
