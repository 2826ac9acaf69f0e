"""A ROS 2 node that segments what a camera topic shows: `streamvos ros2`."""
