// Programs that the matrix starts: those that serve until told to stop, and those that run once.
import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { createInterface } from "node:readline";

const readyWithin = 60_000; // ms; the sandbox starts a chain and deploys its contracts
const stopWithin = 15_000; // ms; then SIGKILL
const runWithin = 60_000; // ms; one client, one call

/** A program that prints one line of JSON when it is ready and stays until SIGTERM. */
export class Service {
  constructor(name, child, logFile) {
    this.name = name;
    this.child = child;
    this.logFile = logFile;
    this.closed = new Promise((resolve) => child.once("close", resolve));
  }

  /** Starts a service and resolves to it and to its line. Its standard error goes to logFile. */
  static async start(name, logFile, command, args, env = {}) {
    const log = openSync(logFile, "w");
    const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", log] });
    closeSync(log); // the child has its own
    const service = new Service(name, child, logFile);
    const line = await service.firstLine().catch(async (error) => {
      await service.stop();
      throw error;
    });
    child.stdout.resume(); // a full pipe would block it
    return { service, ready: JSON.parse(line) };
  }

  firstLine() {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`${this.name} was not ready after ${readyWithin / 1000} s; see ${this.logFile}`)), readyWithin);
      this.child.once("error", (error) => reject(new Error(`starting ${this.name}: ${error.message}`)));
      this.closed.then((code) => reject(new Error(`${this.name} ended with ${code} before it was ready; see ${this.logFile}`)));
      createInterface({ input: this.child.stdout }).once("line", (line) => {
        clearTimeout(timer);
        resolve(line);
      });
    });
  }

  /** Asks the service to end and waits until it has. Resolves to its exit code, null after a signal. */
  async stop() {
    if (this.child.pid === undefined) return null;
    this.child.kill("SIGTERM");
    const timer = setTimeout(() => this.child.kill("SIGKILL"), stopWithin);
    const code = await this.closed;
    clearTimeout(timer);
    return code;
  }
}

/** Runs a Node program to its end and resolves to the last line it printed, decoded. */
export function runNode(file, env) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [file], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: runWithin,
    });
    let out = "";
    let err = "";
    child.stdout.on("data", (chunk) => { out += chunk; });
    child.stderr.on("data", (chunk) => { err += chunk; });
    child.once("error", reject);
    child.once("close", (code, signal) => {
      if (code === 0) return resolve(JSON.parse(out.trimEnd().split("\n").at(-1)));
      const why = err.match(/^\w*Error: .*$/m)?.[0] ?? err.trim().split("\n").at(-1);
      reject(new Error(`client ended with ${code ?? signal}: ${why}`));
    });
  });
}
