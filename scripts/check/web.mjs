// Runs models with onnxruntime-web, for children.py: node web.mjs PACKAGE JOBS.json
//
// JOBS.json is a list of {model, inputs: [{name, type, dims, file}], outputs}: files of raw numbers go in, and OUTPUTS.N.bin and a line of
// JSON for each model come out, {model, outputs: [{type, dims}]} or {model, error}.

import { readFileSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [folder, jobs] = process.argv.slice(2)
const ort = await import(pathToFileURL(`${folder}/node_modules/onnxruntime-web/dist/ort.node.min.mjs`))
ort.env.wasm.numThreads = 1
ort.env.logLevel = 'error'

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array }

for (const { model, inputs, outputs } of JSON.parse(readFileSync(jobs))) {
  let session
  try {
    session = await ort.InferenceSession.create(readFileSync(model), { executionProviders: ['wasm'] })
    const feeds = {}
    for (const { name, type, dims, file } of inputs) {
      const bytes = readFileSync(file)
      const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
      feeds[name] = new ort.Tensor(type, new ARRAYS[type](buffer), dims)
    }
    const made = await session.run(feeds)
    const said = session.outputNames.map((name, n) => {
      const { data, dims, type } = made[name]
      writeFileSync(`${outputs}.${n}.bin`, Buffer.from(data.buffer, data.byteOffset, data.byteLength))
      return { type, dims }
    })
    console.log(JSON.stringify({ model, outputs: said }))
  } catch (error) {
    console.log(JSON.stringify({ model, error: String(error.message ?? error).split('\n')[0] }))
  }
  await session?.release()
}
