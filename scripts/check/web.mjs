// Runs models with onnxruntime-web, for children.py and engines.py: node web.mjs PACKAGE JOBS.json [ROUNDS]
//
// JOBS.json is a list of {model, inputs: [{name, type, dims, file}], outputs}: files of raw numbers go in, and OUTPUTS.N.bin and a line of
// JSON for each model come out, {model, outputs: [{type, dims}]} or {model, error}. A name that is null is that of the only input. With
// ROUNDS all models then run in turn so many times, and a last line has the milliseconds of processor time, one list a model.

import { readFileSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [folder, jobs, rounds = 0] = process.argv.slice(2)
const ort = await import(pathToFileURL(`${folder}/node_modules/onnxruntime-web/dist/ort.node.min.mjs`))
ort.env.wasm.numThreads = 1
ort.env.logLevel = 'error'

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array }
const kept = []

for (const { model, inputs, outputs } of JSON.parse(readFileSync(jobs))) {
  let session
  try {
    session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ['wasm'] })
    const feeds = {}
    for (const { name, type, dims, file } of inputs) {
      const bytes = readFileSync(file)
      const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
      feeds[name ?? session.inputNames[0]] = new ort.Tensor(type, new ARRAYS[type](buffer), dims)
    }
    const made = await session.run(feeds)
    const said = session.outputNames.map((name, n) => {
      const { data, dims, type } = made[name]
      writeFileSync(`${outputs}.${n}.bin`, Buffer.from(data.buffer, data.byteOffset, data.byteLength))
      return { type, dims }
    })
    console.log(JSON.stringify({ model, outputs: said }))
    if (rounds) kept.push({ session, feeds, times: [] })
  } catch (error) {
    console.log(JSON.stringify({ model, error: String(error.message ?? error).split('\n')[0] }))
  }
  if (!rounds) await session?.release()
}

for (let round = 0; round < rounds; round++) {
  for (const { session, feeds, times } of kept) {
    const begun = process.cpuUsage()
    await session.run(feeds)
    const { user, system } = process.cpuUsage(begun)
    times.push((user + system) / 1e3)
  }
}
if (rounds) console.log(JSON.stringify(kept.map(({ times }) => times)))
