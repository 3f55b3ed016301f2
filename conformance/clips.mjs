// One clip's life through the official JavaScript client; any broken promise throws.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const [baseURL, apiKey, model, size, seconds] = process.argv.slice(2);
const videos = new OpenAI({ baseURL, apiKey, maxRetries: 0 }).videos;
const asked = { prompt: 'a red square on a black background', model, size, seconds };

async function finished(id) {
  for (let i = 0; i < 600; i++) {
    const { data, response } = await videos.retrieve(id).withResponse();
    if (data.status === 'completed' || data.status === 'failed') return data;
    await new Promise((r) => setTimeout(r, Number(response.headers.get('openai-poll-after-ms'))));
  }
  throw new Error('the clip takes too long');
}

const made = await videos.create(asked);
assert.equal(made.object, 'video');
assert.ok(['queued', 'in_progress', 'completed'].includes(made.status));
const done = await finished(made.id);
assert.equal(done.status, 'completed');
assert.equal(done.progress, 100);
assert.equal(done.size, size);

const clip = Buffer.from(await (await videos.downloadContent(made.id)).arrayBuffer());
assert.equal(clip.subarray(4, 8).toString(), 'ftyp');
const picture = await videos.downloadContent(made.id, { variant: 'thumbnail' });
assert.match(picture.headers.get('content-type'), /^image\//);

const remixed = await videos.remix(made.id, { prompt: 'a blue star on white' });
assert.equal(remixed.remixed_from_video_id, made.id);
const seen = [];
for await (const video of videos.list({ limit: 1 })) seen.push(video.id);
assert.ok(seen.includes(made.id) && seen.includes(remixed.id));
assert.equal(new Set(seen).size, seen.length);

const gone = await videos.delete(remixed.id);
assert.deepEqual([gone.deleted, gone.object], [true, 'video.deleted']);
await assert.rejects(videos.retrieve(remixed.id), OpenAI.NotFoundError);
await assert.rejects(videos.create({ ...asked, prompt: '' }), OpenAI.BadRequestError);
console.log('all held');
