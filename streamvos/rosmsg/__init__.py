"""ROS 2 messages without a ROS installation: what they are called, what they hold, and pictures in them.

message = make("sensor_msgs/msg/Image", header=..., height=480, ...)
decode(encode(message), "sensor_msgs/msg/Image")
"""
