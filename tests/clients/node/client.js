// Makes three calls with node:http on one kept-alive connection and prints what came of them.
const http = require("node:http");

const base = "http://" + process.argv[2];
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
let peer = null;

function call(method, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request(base + path, { method, agent }, (reply) => {
      peer = reply.socket.remoteAddress + " " + reply.socket.remotePort;
      let data = "";
      reply.on("data", (piece) => (data += piece));
      reply.on("end", () => resolve([reply.statusCode, data]));
    });
    request.on("error", reject);
    request.end(body);
  });
}

(async () => {
  const [allowed] = await call("GET", "/ok");
  const [denied] = await call("GET", "/denied");
  const [posted, echo] = await call("POST", "/submit", "a body");
  console.log(JSON.stringify({ allowed, denied, posted, echo, peer }));
  agent.destroy();
})();
