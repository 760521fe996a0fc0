// Compiles every contract in this folder and writes <Name>.json into the folder given as argument:
//
//     npm ci && node build.mjs artifacts
//
// The output depends only on the sources and on the compiler, whose version package.json pins.

import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import solc from "solc";

const target = process.argv[2];
if (!target) {
  console.error("usage: node build.mjs <output folder>");
  process.exit(2);
}

// Overloads come by number of arguments, so that readers which number them give the same number to the same one.
const rank = (entry) => `${entry.type} ${entry.name} ${String(entry.inputs?.length ?? 0).padStart(2, "0")}`;
const byRank = (a, b) => (rank(a) < rank(b) ? -1 : 1);

const folder = import.meta.dirname;
const sources = {};
for (const file of readdirSync(folder).sort()) {
  if (file.endsWith(".sol")) sources[file] = { content: readFileSync(join(folder, file), "utf8") };
}

const input = {
  language: "Solidity",
  sources,
  settings: {
    evmVersion: "cancun",
    optimizer: { enabled: true, runs: 200 },
    metadata: { bytecodeHash: "none" },
    outputSelection: { "*": { "*": ["abi", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences"] } },
  },
};

const output = JSON.parse(solc.compile(JSON.stringify(input)));
for (const message of output.errors ?? []) console.error(message.formattedMessage);
if (output.errors?.length) process.exit(1);

mkdirSync(target, { recursive: true });
for (const file of Object.keys(sources)) {
  const name = basename(file, ".sol");
  const contract = output.contracts[file][name];
  const code = contract.evm.deployedBytecode;
  if (Object.keys(code.immutableReferences ?? {}).length) {
    console.error(`${name} has immutables, which code placed in genesis cannot have`);
    process.exit(1);
  }
  const artifact = {
    compiler: solc.version(),
    sourceSHA256: createHash("sha256").update(sources[file].content).digest("hex"),
    deployedBytecode: "0x" + code.object,
    abi: contract.abi.toSorted(byRank),
  };
  writeFileSync(join(target, name + ".json"), JSON.stringify(artifact, null, 1) + "\n");
}
