from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:7860/v1", api_key="none")
video = client.videos.create_and_poll(prompt="a red star bouncing at sunset", model="pocket")
client.videos.download_content(video.id).write_to_file("star.mp4")
